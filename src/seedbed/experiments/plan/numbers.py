"""The numbers of a recipe with their bounds, and the ground of all its settings: nothing unknown, nothing changed."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from seedbed.core.bounds import LARGEST_SEED, LONGEST_ROW, MOST_BYTES, MOST_ROWS
from seedbed.core.config import Count

Part = str | dict[str, Any]

Steps = Annotated[Count, Field(ge=1, le=10**12)]

Tokens = Annotated[Count, Field(ge=1, le=10**18)]

Bytes = Annotated[Count, Field(ge=1, le=MOST_BYTES)]

Flops = Annotated[float, Field(gt=0, le=1e30)]

Rows = Annotated[int, Field(ge=1, le=MOST_ROWS)]

RowLength = Annotated[int, Field(ge=1, le=LONGEST_ROW)]

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]

Std = Annotated[float, Field(gt=0, le=1e20)]

MOST_SEEDS = 10_000

Kept = Annotated[int, Field(ge=1, le=10**6)]


class Strict(BaseModel):
    """Settings that are read once, in which no key is unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
