"""Where a forward pass stands, for layers that draw: by name, so that one layer's draws move nobody else's, dropout's included.

The engine says the address (seed, stage, step, micro-batch); a layer asks for a number by its role and a name of its own, and
seeds a generator with it. A pass that is made again for its backward pass draws the same. Outside of training there is none.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from seedbed.core.draws import key
from seedbed.core.errors import ConfigError
from seedbed.core.records import Role

_address: tuple[int | str, ...] | None = None  # not a context variable: a backward pass runs in threads of its own


@contextmanager
def drawing(*address: int | str) -> Iterator[None]:
    """Let layers draw: what they draw is a function of this address, their role and the name that they give."""
    global _address  # noqa: PLW0603  # see above
    before, _address = _address, address
    try:
        yield
    finally:
        _address = before


def forward_seed(role: Role, name: str) -> int:
    """Return the seed, 0 to 2^63 - 1, of what a layer draws under this name at this step and micro-batch.

    Raises ConfigError outside of a training step: what is read of a model between steps draws nothing.
    """
    if _address is None:
        raise ConfigError(f"{role} draws {name!r} outside of a training step; draw only while `self.training` is true")
    seed, *names = _address
    return key(int(seed), *names, "layer", str(role), name) % 2**63
