"""A site: one place of the model that a layer may fill. Sites: embedding, block_norms (the pair), attention, mlp, linear.

A layer is a frozen dataclass whose `build(site)` returns the module for that place. What a module says of itself is in the
protocols below: each is optional, and a module that says nothing is taken for one of plain weights, whose matrices are drawn
from a normal distribution, whose products cost two FLOPs a weight and position, and which other forms cannot take over.
Letters: T positions, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from seedbed.core.records import Role

SITES = ("embedding", "block_norms", "attention", "mlp", "linear")


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a layer gets to know: where it stands, its sizes, the default for this place, and its siblings."""

    name: str
    role: Role
    num_layers: int
    sizes: Mapping[str, Any]  # of a linear: in_features, out_features, bias; of the others: the model's sizes
    default: Callable[[], nn.Module]  # builds what stands here if nothing else is asked for
    siblings: Mapping[str, nn.Module]


class Layer(Protocol):
    """Settings of a layer. In a recipe `at` (role patterns) says beside them which of its places it fills; without it, all."""

    @property
    def sites(self) -> tuple[str, ...]: ...  # that it can fill
    @property
    def layout_free(self) -> bool: ...  # whether micro-batches and ranks change it by rounding alone
    def build(self, site: Site) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations a position of one forward pass, of the whole module."""

    run: float  # what the machine does
    ideal: float  # what one would do that skips zeros and needless work


@runtime_checkable
class StatesFirstValues(Protocol):
    """A module that says how its parameters and buffers begin, all of them, those of modules inside included."""

    def first_values(self, draws: Callable[[str], np.random.Generator], *, std: float) -> None:
        """Fill them; `draws(name)` is a generator of seed, role and that name, `std` what the model takes for a matrix."""


@runtime_checkable
class StatesCost(Protocol):
    """A module whose cost is not two FLOPs a weight and position."""

    def flops(self) -> Flops: ...


@runtime_checkable
class Convertible(Protocol):
    """A linear of another form. Any form meets any other through the matrix that it stands for."""

    def dense(self) -> Tensor:
        """Return that matrix (out, in)."""

    def take_dense(self, weight: Tensor) -> None:
        """Become, as nearly as the form can, what this matrix (out, in) stands for."""


@runtime_checkable
class HandsOn(Protocol):
    """The first of a pair of norms, which hands something on to the second: a value of the pass, not of the module."""

    def first(self, states_BTD: Tensor) -> tuple[Tensor, Any]:
        """Return the normed states, and what the second norm gets to know."""


@runtime_checkable
class TakesOn(Protocol):
    """The second of such a pair."""

    def second(self, states_BTD: Tensor, memo: Any) -> Tensor: ...
