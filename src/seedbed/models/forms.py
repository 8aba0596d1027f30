"""Linears of other forms than a plain matrix, and how any form meets any other: through the matrix that it stands for."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seedbed.core.records import Role
from seedbed.models.layers.site import Convertible
from seedbed.models.transformer import Transformer


def linears_of(model: Any) -> dict[Role, Any]:
    """Return the linears of a model that have another form, by role."""
    others: list[Any] = [module for module in model.modules() if isinstance(module, Convertible)]
    return {module.role: module for module in others}


def form_of(linear: Any) -> str:
    """Return what two linears of one form have in common: their class, and names and shapes of all they hold."""
    held = [f"{n} {tuple(v.shape)}" for n, v in [*linear.named_parameters(), *linear.named_buffers()]]
    return f"{type(linear).__qualname__}: {', '.join(held)}"


def owner_of(role: Role, linears: Any) -> Role | None:
    """Return the linear, of these roles, to which a tensor's role belongs."""
    return next((r for r in linears if (r.part, r.layer) == (role.part, role.layer) and _within(role.tensor, r.tensor)), None)


def _within(tensor: str, linear: str) -> bool:
    return tensor == linear or tensor.startswith(f"{linear}.")


@torch.no_grad()
def dense_values(model: Any) -> dict[Role, Tensor]:
    """Return every parameter of a model by role, with the matrices of its linears in place of what these hold."""
    linears = linears_of(model)
    found = {
        model.roles[n]: p.detach()
        for n, p in model.named_parameters()
        if model.roles[n].tensor.endswith("bias") or owner_of(model.roles[n], linears) is None
    }
    return found | {role: linear.dense().detach() for role, linear in linears.items()}


@torch.no_grad()
def dense_twin(model: Any) -> Any:
    """Return the model that computes the same with plain linears; the model itself if it has no others."""
    if not linears_of(model):
        return model
    config = replace(model.config, layers={site: layer for site, layer in model.config.layers.items() if site != "linear"})
    twin = Transformer(config, vocab_size=model.vocab_size)
    values = dense_values(model)
    for name, parameter in twin.named_parameters():
        parameter.copy_(values[twin.roles[name]])
    return twin.train(model.training)
