"""One source, gone through in a new random order each epoch; position and index are linked by a keyed permutation.

The permutation is a Feistel network of four rounds on the smallest even number of bits that holds the size; results outside
are mapped again until they fall inside (cycle walking), so any position is found without drawing the ones before it. A source
that never ends is read in its own order.
Paper: Black and Rogaway (2002), "Ciphers with arbitrary finite domains".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar

from seedbed.core.draws import key
from seedbed.core.errors import ConfigError, DataError
from seedbed.core.protocols import Mixture, Neutral
from seedbed.core.records import Draw, Measurement

_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class Epochs(Mixture):
    """Settings: `shuffle: false` reads every epoch in the order of the source."""

    neutral: ClassVar[Neutral] = "the plain way through one source: it is the control"
    shuffle: bool = True

    wants: ClassVar[tuple[str, int] | None] = None

    def resolved(self, amounts: Mapping[str, Mapping[str, float]]) -> "Epochs":
        """Return the mixture itself. Raises ConfigError for several sources."""
        if len(amounts) > 1:
            raise ConfigError(f"{len(amounts)} sources need a mixture that weighs them, such as weighted")
        return self

    def draws(
        self, start: int, *, count: int, sizes: Mapping[str, int | None], seed: int, history: Sequence[Measurement] = ()
    ) -> list[Draw]:
        if len(sizes) != 1:
            raise ConfigError(f"the mixture 'epochs' takes one source, got {', '.join(sizes)}; take `weighted` for several")
        ((name, size),) = sizes.items()
        if size is None:
            return [Draw(name, position, 0) for position in range(start, start + count)]
        if size < 1:
            raise DataError(f"the source {name!r} has no row; give it more data or a smaller seq_len")
        draws = []
        for position in range(start, start + count):
            epoch, place = divmod(position, size)
            index = permuted(place, size=size, key=key(seed, "epoch", epoch)) if self.shuffle else place
            draws.append(Draw(name, index, epoch))
        return draws


def permuted(place: int, *, size: int, key: int) -> int:
    """Return where a keyed permutation of 0..size-1 sends `place`."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for r in range(_ROUNDS):
            digest = sha256(b"%d/%d/%d" % (key, r, right)).digest()
            left, right = right, left ^ (int.from_bytes(digest[:8], "little") & mask)
        place = left << half | right
        if place < size:
            return place
