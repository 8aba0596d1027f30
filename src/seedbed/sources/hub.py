"""Data sets that the package `datasets` finds, on the hub or in a folder, as a stream of documents.

`hub:NAME`, `hub:NAME@CONFIG`, `hub:NAME:SPLIT` or `hub:NAME@CONFIG:SPLIT`; the split is "train" unless named. NAME may be a
folder of this machine. Code that comes with a data set is never run.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seedbed.core.errors import DataError
from seedbed.core.records import Document
from seedbed.sources.fields import Record
from seedbed.sources.files import Bounds, shown
from seedbed.sources.formats import Skip, documents_of

HUB = "hub:"


def hub_documents(
    name: str,
    *,
    text_key: str = "text",
    meta: Mapping[str, str] = {},
    bounds: Bounds = Bounds(),
    skip: Skip | None = None,
) -> Iterator[Document]:
    """Give the documents of a data set; ids are hub:NAME:SPLIT:NUMBER, the first number is 1, a folder is its own name.

    Text, meta and `skip` are as for files. Raises DataError if the package, the network or the data set is missing.
    """
    yield from documents_of(_records(name), text_key=text_key, meta=meta, bounds=bounds, skip=skip)


def _records(name: str) -> Iterator[Record]:
    asked = name.removeprefix(HUB)
    split = "train"
    config: str | None = None
    if not Path(asked).exists():
        found = re.fullmatch(r"(?P<name>[^@:]+)(@(?P<config>[^@:]+))?(:(?P<split>[^@:]+))?", asked)
        if found is None:
            raise DataError(f"{name} does not name a data set; write hub:NAME, hub:NAME@CONFIG or hub:NAME@CONFIG:SPLIT")
        asked, config, split = found["name"], found["config"], found["split"] or split
    try:
        import datasets
    except ImportError:
        raise DataError(f"reading {HUB}{asked} needs a further package: pip install 'seedbed[data]'") from None
    place = (
        f"{HUB}{shown(Path(asked).resolve().name if Path(asked).exists() else asked)}{f'@{config}' if config else ''}:{split}"
    )
    number = 0
    try:
        rows: Any = datasets.load_dataset(asked, config, split=split, streaming=True)
        for column, feature in (rows.features or {}).items():  # a moment that Python cannot hold must not end the reading
            if str(getattr(feature, "dtype", "")).startswith(("timestamp", "date", "time", "duration")):
                rows = rows.cast_column(column, datasets.Value("string"))
        for number, fields in enumerate(rows, 1):
            yield Record(fields, id=f"{place}:{number}", file=place, record=number)
    except Exception as e:  # whatever the package, its readers and the network raise
        problem = shown(f"{type(e).__name__}: {e}"[:300])
        raise DataError(
            f"{place} cannot be read behind record {number} ({problem}); check the name, the split and the network, "
            "or give a folder that holds the files"
        ) from None
