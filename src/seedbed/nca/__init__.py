"""The heart: neural cellular automata as a source of token sequences. Knows no language model, loads without torch.

Read in this order: rule, rollout, patches, complexity, automaton; then reference and check (parity), drawing (pictures).
Paper: "Training Language Models via Neural Cellular Automata" (2026), arXiv 2603.10055.
"""

from seedbed.nca.automaton import GENERATOR_VERSION, Automaton, Rollout

__all__ = ["GENERATOR_VERSION", "Automaton", "Rollout"]
