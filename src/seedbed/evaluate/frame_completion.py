"""How well a model foretells whole frames of unseen rules: teacher-forced, and greedily from the true frames before.

Accuracies are shares of tokens, of cells and of whole frames; beside them what copying the frame before would reach. Predicted
tokens are patches only: delimiters are left out of the choice.
Paper: "Training Language Models via Neural Cellular Automata" (2026), arXiv 2603.10055, which reports greedy completion.
Letters: R rows, T tokens of a row, P patches of a frame, G grid side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

Choose = Callable[[Int[np.ndarray, "R T"], int], Int[np.ndarray, "R P"]]
"""(rows, n): the likeliest patch after each of the last n tokens."""
Decode = Callable[[Int[np.ndarray, "R P"]], UInt8[np.ndarray, "R G G"]]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of right tokens, right cells and wholly right frames."""

    token: float
    cell: float
    frame: float


@dataclass(frozen=True, kw_only=True)
class FrameCompletion:
    """Lists run over frames from frame 1 on; `greedy` is the last whole frame, completed from the true frames before it."""

    teacher_forced: list[Accuracy]
    copied: list[Accuracy]  # the frame before, copied
    greedy: Accuracy
    greedy_frame: int
    rows: int


def frame_completion(
    choose: Choose, tokens_RT: Int[np.ndarray, "R T"], *, frame_tokens: int, decode: Decode
) -> FrameCompletion:
    """Return the accuracies on rows that hold at least two whole frames."""
    frames = tokens_RT.shape[1] // frame_tokens
    patches = frame_tokens - 2

    def patches_of(frame: int) -> Int[np.ndarray, "R P"]:
        return tokens_RT[:, frame * frame_tokens + 1 : (frame + 1) * frame_tokens - 1]

    likeliest_RT = choose(tokens_RT[:, :-1], tokens_RT.shape[1] - 1)  # at t: what follows token t
    forced, copied = [], []
    for f in range(1, frames):
        begin = f * frame_tokens
        forced.append(accuracy(likeliest_RT[:, begin : begin + patches], patches_of(f), decode=decode))
        copied.append(accuracy(patches_of(f - 1), patches_of(f), decode=decode))
    last = frames - 1
    so_far_RT = tokens_RT[:, : last * frame_tokens + 1]
    for _ in range(patches):
        so_far_RT = np.concatenate([so_far_RT, choose(so_far_RT, 1)], axis=1)
    greedy = accuracy(so_far_RT[:, -patches:], patches_of(last), decode=decode)
    return FrameCompletion(teacher_forced=forced, copied=copied, greedy=greedy, greedy_frame=last, rows=len(tokens_RT))


def accuracy(guessed_RP: Int[np.ndarray, "R P"], true_RP: Int[np.ndarray, "R P"], *, decode: Decode) -> Accuracy:
    """Return the shares of `guessed_RP` that are right."""
    right_RGG = decode(np.asarray(guessed_RP, dtype=np.int32)) == decode(np.asarray(true_RP, dtype=np.int32))
    return Accuracy(
        token=float((guessed_RP == true_RP).mean()),
        cell=float(right_RGG.mean()),
        frame=float(right_RGG.all(axis=(1, 2)).mean()),
    )
