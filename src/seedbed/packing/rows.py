"""What every packed source shares: positions that restart, and a count of what its rows ask, pad and leave out.

Letters: T tokens of a row (seq_len + 1), A = 1 position axis.
"""

import numpy as np
from jaxtyping import Int32, Int64

PADDING = -1  # the number of no document, where a row is filled up


def restarted_positions(documents_T: Int32[np.ndarray, "T"]) -> Int64[np.ndarray, "T 1"]:
    """Return positions that are 0 where a document begins, or goes on from another row: [4, 4, 5, 5, 5] to 0 1 0 1 2."""
    place_T = np.arange(len(documents_T))
    begins_T = np.concatenate([[True], documents_T[1:] != documents_T[:-1]])
    return (place_T - np.maximum.accumulate(np.where(begins_T, place_T, 0)))[:, None]


def usage(*, rows: int, row_tokens: int, tokens: int, asked: int, padding: int, cropped: int) -> dict[str, int | float]:
    """Return the counts of a packed split with their shares, ready for JSON.

    `tokens` are those of the documents, boundaries included; `asked` the targets that count once the view next_token has
    run; `padding` the places filled up, a share of all places; `cropped` the tokens that stand in no row, a share of `tokens`.
    """
    return {
        "rows": rows,
        "tokens": tokens,
        "asked": asked,
        "padding": padding,
        "cropped": cropped,
        "padding_share": padding / (rows * row_tokens) if rows else 0.0,
        "cropped_share": cropped / tokens if tokens else 0.0,
    }
