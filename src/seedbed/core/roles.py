"""Which role a tensor of a torch module has: that of the nearest module around it that carries one (`module.role`)."""

from typing import Any

from seedbed.core.records import Role


def with_role(module: Any, role: Role) -> Any:
    """Leave a role on a module; modules inside may carry finer ones."""
    module.role = role
    return module


def role_of(model: Any, name: str) -> Role:
    """Return the role of a parameter or buffer by its dotted name; a tensor that is no `weight` keeps its name behind."""
    owner, role, rest = model, Role("other"), name
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        owner = getattr(owner, part)
        if isinstance(getattr(owner, "role", None), Role):
            role, rest = owner.role, ".".join(parts[i + 1 :])
    suffix = "" if rest == "weight" else rest.removesuffix(".weight")
    return Role(role.part, role.layer, ".".join(t for t in (role.tensor, suffix) if t))
