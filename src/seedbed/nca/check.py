"""Holds a file of reference vectors against our generator, on the float path and on the integer path.

The reference sampled its next states at temperature 1e-4, so even its own logits disagree with them near ties; the bars
say how much further ours may be off.
"""

import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from seedbed.core.errors import ConfigError, DataError
from seedbed.nca.complexity import SELECTION_FRAMES, gzip_ratio
from seedbed.nca.patches import Patches
from seedbed.nca.reference import float_logits, integer_rule
from seedbed.nca.rollout import logits

LOGITS_BAR = 1e-5  # largest error of the float path
AGREEMENT_BAR = 0.0005  # the integer path may agree this much less often than the float path
CLEAR_MARGIN = 1e-2  # cells whose best two logits are further apart must all agree
_NAMES = [f"Conv_{i}_{kind}" for i in range(3) for kind in ("kernel", "bias")]
_ALSO = ["states", "logits", "tokens", "gzip_ratio", "grid", "n_states", "patch"]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Shares of cells are between 0 and 1; `ok` is whether every bar is met."""

    rules: int
    transitions: int
    logits_max_abs_error: float
    step_agreement: float
    float_step_agreement: float
    clear_step_agreement: float
    tokens_equal: bool
    gzip_equal: bool

    @property
    def ok(self) -> bool:
        return (
            self.logits_max_abs_error <= LOGITS_BAR
            and self.step_agreement >= self.float_step_agreement - AGREEMENT_BAR
            and self.clear_step_agreement == 1.0
            and self.tokens_equal
            and self.gzip_equal
        )


def check(path: Path) -> Parity:
    """Return how our generator compares with the vectors in an .npz file.

    Raises DataError if the file cannot be read or lacks an array, ConfigError if the arrays do not fit each other.
    """
    vectors = _load(path)
    states, patch, grid = (int(vectors[name]) for name in ("n_states", "patch", "grid"))
    patches = Patches(states=states, grid=grid, patch=patch)
    error, agree, float_agree, clear_agree, clear_cells, cells = 0.0, 0, 0, 0, 0, 0
    tokens_equal, gzip_equal = True, True
    for r, frames_FGG in enumerate(vectors["states"]):
        weights = {name: vectors[name][r] for name in _NAMES}
        rule = integer_rule(weights)
        for f, theirs_GGN in enumerate(vectors["logits"][r]):
            ours_GGN = float_logits(weights, frames_FGG[f], states=states)
            error = max(error, float(np.abs(ours_GGN - theirs_GGN).max()))
        for before_GG, after_GG in pairwise(frames_FGG):
            real_GGN = float_logits(weights, before_GG, states=states)
            ours_GG = logits(rule, before_GG).argmax(-1)
            best_GG2 = np.sort(real_GGN, axis=-1)[..., -2:]
            clear_GG = best_GG2[..., 1] - best_GG2[..., 0] > CLEAR_MARGIN
            agree += int((ours_GG == after_GG).sum())
            float_agree += int((real_GGN.argmax(-1) == after_GG).sum())
            clear_agree += int((ours_GG == after_GG)[clear_GG].sum())
            clear_cells += int(clear_GG.sum())
            cells += after_GG.size
        encoded_FP = patches.encode(frames_FGG)
        tokens_equal &= np.array_equal(patches.framed(encoded_FP), vectors["tokens"][r])
        tokens_equal &= np.array_equal(patches.decode(encoded_FP), frames_FGG)
        ratio = gzip_ratio(encoded_FP[:SELECTION_FRAMES])
        gzip_equal &= bool(np.isclose(ratio, vectors["gzip_ratio"][r], rtol=0, atol=1e-9 + _float_error(vectors)))
    if not cells:
        raise ConfigError(f"{path} holds no transition to compare: `states` has shape {vectors['states'].shape}")
    return Parity(
        rules=len(vectors["states"]),
        transitions=cells // grid**2,
        logits_max_abs_error=error,
        step_agreement=agree / cells,
        float_step_agreement=float_agree / cells,
        clear_step_agreement=clear_agree / clear_cells if clear_cells else 1.0,
        tokens_equal=tokens_equal,
        gzip_equal=gzip_equal,
    )


def _float_error(vectors: dict[str, np.ndarray]) -> float:
    """Half the step of the file's own number type near 1; one compressed byte is at least a hundred times larger."""
    return float(np.finfo(vectors["gzip_ratio"].dtype).eps)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            vectors = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, BadZipFile, EOFError, zlib.error) as e:
        raise DataError(f"cannot read {path} as an .npz of reference vectors: {e}") from None
    missing = [name for name in [*_NAMES, *_ALSO] if name not in vectors]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(vectors)) or 'nothing'}")
    flat = [name for name in [*_NAMES, "states", "logits", "tokens", "gzip_ratio"] if vectors[name].ndim == 0]
    if flat or vectors["states"].ndim != 4 or vectors["logits"].ndim != 5:
        raise ConfigError(f"{path}: {', '.join(flat) or 'states or logits'} have too few axes; see the layout of the vectors")
    rules = {name: len(vectors[name]) for name in [*_NAMES, "states", "logits", "tokens", "gzip_ratio"]}
    if len(set(rules.values())) != 1:
        raise ConfigError(f"{path}: the arrays disagree on the number of rules: {rules}")
    n, grid, patch = int(vectors["n_states"]), int(vectors["grid"]), int(vectors["patch"])
    count, frames = vectors["states"].shape[:2]
    wanted = {
        "states": (count, frames, grid, grid),
        "logits": (count, vectors["logits"].shape[1], grid, grid, n),
        "tokens": (count, frames * ((grid // max(patch, 1)) ** 2 + 2)),
        "Conv_0_kernel": (count, 3, 3, n + 2, 4),
        "Conv_1_kernel": (count, 1, 1, 4, 16),
        "Conv_2_kernel": (count, 1, 1, 16, n),
    }
    for name, shape in wanted.items():
        if vectors[name].shape != shape:
            raise ConfigError(f"{path}: {name} has shape {vectors[name].shape}, should have {shape}")
    if vectors["states"].max(initial=0) >= n:
        raise ConfigError(f"{path}: states reach {vectors['states'].max()}, but n_states is {n}")
    return vectors
