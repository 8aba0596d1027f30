"""How long, how much memory: from the plan and a few measured passes."""
