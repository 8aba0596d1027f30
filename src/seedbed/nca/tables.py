"""Integer quantile tables: the only place where a real-valued distribution enters the generating path.

Each table holds the 2^14 mid-point quantiles of a distribution, rounded to 20 fractional bits. A draw is a look-up with 14
random bits, so every machine draws the same integers. The tables are shipped as data (tables.npy); `build()` says how they
were made and needs scipy, the generating path does not.
"""

from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Int32

INDEX_BITS = 14
FRACTION_BITS = 20  # of every table entry, rule weight and noise value
TRUNCATED_NORMAL, NORMAL, GUMBEL = 0, 1, 2  # rows of the table


@cache
def tables() -> Int32[np.ndarray, "3 16384"]:
    """Return the shipped tables: standard normal truncated at +-2, standard normal, standard Gumbel."""
    loaded = np.load(Path(__file__).with_name("tables.npy"), allow_pickle=False)
    loaded.setflags(write=False)
    return loaded


def build() -> Int32[np.ndarray, "3 16384"]:
    """Compute the tables afresh in float64, as they were made for shipping."""
    from scipy import stats

    middle = (np.arange(2**INDEX_BITS) + 0.5) / 2**INDEX_BITS
    real = [stats.truncnorm(-2, 2).ppf(middle), stats.norm.ppf(middle), stats.gumbel_r.ppf(middle)]
    return np.rint(np.stack(real) * 2**FRACTION_BITS).astype(np.int32)
