"""Data sets that recipes name as data:NAME/... and the package may not ship: where each comes from, and its licence."""

import csv
from pathlib import Path

from seedbed.core.errors import DataError, nearest
from seedbed.core.places import DATA, DATA_FOLDERS, data_folders, found_data

_TABLE = Path(__file__).with_name("data_sets.tsv")


def data_place(path: str) -> str:
    """Return a path as it is, or of data:NAME/... the place where it lies.

    Raises DataError if it lies nowhere, with where it was looked for and, of a set that is known, its origin and licence.
    """
    if not path.startswith(DATA):
        return path
    found = found_data(path)
    if found is not None:
        return found
    name = path.removeprefix(DATA).partition("/")[0]
    known = data_sets()
    looked = (
        f"looked in {', '.join(data_folders())}; --data FOLDER, or {DATA_FOLDERS}, names folders that hold one for each set"
    )
    if name not in known:
        raise DataError(f"there is no data set {name!r}: {nearest(name, known)} ({looked})")
    facts = known[name]
    raise DataError(
        f"the data set {name!r} is not here, and the package does not ship it. Origin: {facts['origin']}; licence: "
        f"{facts['licence']}; commercial use: {facts['commercial use']} ({looked})"
    )


def data_sets() -> dict[str, dict[str, str]]:
    """Return origin, licence and commercial use of every known set, by its name."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
