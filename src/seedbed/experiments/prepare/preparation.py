"""What `seedbed prepare` is asked for: settings, checked, and what comes of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seedbed import curate, tokenizers
from seedbed.core.bounds import MOST_BYTES, MOST_WORKERS, Range, check_ranges, within
from seedbed.core.errors import ConfigError, DataError
from seedbed.core.places import places_of
from seedbed.core.protocols import Refiner, Tokenizer
from seedbed.core.registry import defaults_of
from seedbed.experiments.plan.numbers import Part
from seedbed.experiments.prepare.lending import Lending
from seedbed.sources.files import Bounds

if TYPE_CHECKING:
    from seedbed.curate.near_duplicates import NearDuplicates

WORKERS = Range(1, MOST_WORKERS)
_NUMBERED = {"integers": "vocab"}  # tokenizers that are given as KIND:NUMBER, and the setting that the number is


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What `seedbed prepare` was asked for. Shares are of documents; None leaves a bound off."""

    paths: tuple[str, ...]
    tokenizer: str = "bytes"  # bytes, integers:VOCABULARY, or a tokenizer.json
    boundary: str | None = None  # of a tokenizer.json: the special token in front of documents; None: what the file says
    on_error: Literal["stop", "skip"] = "stop"
    text_key: str = "text"
    meta: Mapping[str, str] | None = None  # what is kept under another name: {"language": "lang"}
    section_bytes: int = within(0, MOST_BYTES, default=0)  # longer documents are cut at empty lines; all stand on one side
    valid_share: float = within(0, 1, default=0.01, below=True)
    test_share: float = within(0, 1, default=0.01, below=True)
    duplicates: Literal["keep", "exact", "near"] = "exact"  # what of them is left out
    threshold: float = within(
        0, 1, default=0.8, above=True
    )  # estimated Jaccard similarity from which documents are near duplicates
    against: tuple[str, ...] = ()  # other corpora, prepared folders or text: what they hold is left out here
    decontaminate: tuple[str, ...] = ()  # evaluation sets: what shares 13 words in a row with them is left out
    least_bytes: int = within(0, MOST_BYTES, default=1)
    most_bytes: int | None = within(1, MOST_BYTES, default=None)
    document_bytes: int = within(1, MOST_BYTES, default=2**26)  # a longer document is bad input
    file_bytes: int = within(1, MOST_BYTES, default=2**36)  # a file that unpacks to more is bad input
    shard_tokens: int = within(1, 2**40, default=2**27)
    licence: str = ""  # noted in the manifest
    refine: Sequence[Part] = ()  # parts of the room `curate` that training documents go through, one after the other
    lending: Lending = field(default_factory=Lending)  # what those may call

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.valid_share + self.test_share >= 1:
            raise ConfigError(
                f"valid_share and test_share must leave something to train on; got {self.valid_share} and {self.test_share}"
            )
        if self.on_error not in ("stop", "skip"):
            raise ConfigError(f"on_error must be stop or skip, got {self.on_error!r}")
        if self.duplicates not in ("keep", "exact", "near"):
            raise ConfigError(f"duplicates must be keep, exact or near, got {self.duplicates!r}")
        if self.against and self.duplicates == "keep":
            raise ConfigError(
                "against takes duplicates out, and duplicates is keep; set it to exact or near, or leave against out"
            )
        if not self.paths:
            raise ConfigError("prepare needs at least one PATH: a file, a folder, a glob, builtin:NAME or hub:NAME")

        self.near, self.cleaning, self.refiners  # noqa: B018  # each raises for settings that do not fit

    @property
    def near(self) -> "NearDuplicates":
        from seedbed.curate.near_duplicates import NearDuplicates  # which compiles: slow to import

        return NearDuplicates(threshold=self.threshold)

    @property
    def cleaning(self) -> list[Refiner]:
        """What the documents of every side go through."""
        from seedbed.curate.decontaminate import Decontaminate
        from seedbed.curate.length import Length

        bounds = Length(least_bytes=self.least_bytes, most_bytes=self.most_bytes)
        return [bounds, Decontaminate(sets=self.decontaminate)] if self.decontaminate else [bounds]

    @property
    def refiners(self) -> list[Refiner]:
        """What training documents go through. Raises ConfigError for a part that does not fit, or calls what is not lent."""
        found = []
        for i, part in enumerate(self.refine):
            refiner: Refiner = curate.parts.build(part, path=f"refine.{i}")
            self.lending.check(type(refiner).__name__, refiner.calls, path=f"refine.{i}")
            found.append(refiner)
        return found

    @property
    def reads(self) -> list[str]:
        """Return every path whose files decide what comes out."""
        by_parts = [getattr(refiner, name) for refiner in self.refiners for name in places_of(type(refiner))]
        named = [path for value in by_parts for path in ([value] if isinstance(value, str) else value)]
        return [*self.paths, *self.against, *self.decontaminate, *named]

    @property
    def bounds(self) -> Bounds:
        return Bounds(file_bytes=self.file_bytes, document_bytes=self.document_bytes)

    @cached_property
    def tokenizer_part(self) -> dict[str, Any]:
        """Return the tokenizer as a recipe names it."""
        part = self._tokenizer_kind()
        if self.boundary is not None and "path" not in part:
            raise ConfigError(
                f"the tokenizer {self.tokenizer} has its own boundary; leave --boundary out, which is for a tokenizer.json"
            )
        return part if self.boundary is None else {**part, "boundary": self.boundary}

    def _tokenizer_kind(self) -> dict[str, Any]:
        kind, colon, number = self.tokenizer.partition(":")
        if kind in _NUMBERED and colon:
            if not number.isdigit():
                raise ConfigError(f"--tokenizer {kind}:NUMBER needs a whole number, got {self.tokenizer!r}")
            return {"kind": kind, _NUMBERED[kind]: int(number)}
        if self.tokenizer in tokenizers.parts and not Path(self.tokenizer).exists():
            return {"kind": self.tokenizer}
        if not Path(self.tokenizer).exists():
            raise DataError(
                f"there is no tokenizer {self.tokenizer!r}; give bytes, integers:VOCABULARY, or the path of a "
                "tokenizer.json (`seedbed tokenizer train` makes one)"
            )
        return {"kind": "file", "path": str(Path(self.tokenizer).resolve())}

    def build_tokenizer(self) -> Tokenizer:
        """Return the tokenizer; the same one for every unit of a process, with what it remembers."""
        place = self.tokenizer_part.get("path")
        files = [] if place is None else [f for f in (Path(place), Path(place) / "tokenizer.json") if f.exists()]
        return _built(json.dumps(self.tokenizer_part), tuple(f.stat().st_mtime_ns for f in files))


@lru_cache(maxsize=1)
def _built(part: str, modified: tuple[int, ...]) -> Tokenizer:
    return tokenizers.parts.build(json.loads(part), path="tokenizer")


@dataclass(frozen=True, kw_only=True)
class PreparedFolder:
    """What came of it; `manifest` is manifest.json."""

    folder: Path
    manifest: dict[str, Any]


def settings_of_preparing() -> dict[str, Any]:
    """Return the settings, with their defaults, that a recipe may give beside paths and parts; ready for JSON."""
    return {name: value for name, value in defaults_of(Preparation).items() if name not in ("refine", "lending")}
