"""SHA-256 of the first thousand rows of three settings: what every machine must generate, to the byte.

They change only with GENERATOR_VERSION.
"""

from hashlib import sha256

from seedbed.nca.automaton import Automaton

ROWS, FRAMES, SEED = 1000, 8, 0
GOLDEN: dict[str, tuple[Automaton, str]] = {
    "10 states, grid 12, patch 2": (Automaton(), "b735c5060c650d5eb24f2b99cc7e0af124ce83679a5b77036e2885f8a7123d36"),
    "2 states, grid 8, patch 2, ratio above 0.12": (
        Automaton(states=2, grid=8, band=(0.12, 2.0)),
        "62a7db39830ea64dc10ac41d9385800b140709b70d072774d890eefb725a0c62",
    ),
    "4 states, grid 6, patch 1, temperature 0.5, clean": (
        Automaton(states=4, grid=6, patch=1, temperature=0.5, wrap_states=False, start_states="uniform"),
        "0105eee425543f8708f4efb0fa961c65620513b7fd4a2393e2b267e519506f8c",
    ),
}


def digest(automaton: Automaton, *, rows: int = ROWS, threads: int = 1) -> str:
    """Return the hash of the setting's first rows, as int32 little-endian."""
    made = automaton.generate(rows, frames=FRAMES, seed=SEED, threads=threads)
    return sha256(made.astype("<i4").tobytes()).hexdigest()


def golden_rows(*, threads: int = 1) -> dict[str, bool]:
    """Return for each setting whether its bytes are the known ones here."""
    return {name: digest(automaton, threads=threads) == known for name, (automaton, known) in GOLDEN.items()}
