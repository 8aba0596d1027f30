"""Small JSON files, read one way by everyone: UTF-8 whatever the locale says, no byte order mark, errors name the file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seedbed.core.errors import DataError


def read_text(path: Path, *, advice: str) -> str:
    """Return the text of a file. Raises DataError, with what to do, if it cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror or e}; {advice}") from None
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 at byte {e.start}; {advice}") from None


def parse_json(text: str, path: Path, *, advice: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path} is broken: {e}; {advice}") from None


def read_json(path: Path, *, advice: str) -> Any:
    """Return what a JSON file holds. Raises DataError as `read_text` does, and if it is not JSON."""
    return parse_json(read_text(path, advice=advice), path, advice=advice)


def read_object(path: Path, *, advice: str) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises DataError as `read_json` does, and if it holds something else."""
    found = read_json(path, advice=advice)
    if not isinstance(found, dict):
        raise DataError(f"{path} is broken: it must hold an object, got {type(found).__name__}; {advice}")
    return found


def read_json_lines(path: Path, *, advice: str) -> Iterator[dict[str, Any]]:
    """Give the objects of a file of lines; a last line without its end, which a kill has cut off, is left out.

    Raises DataError for a file that cannot be read and for a line that is not JSON, by its number.
    """
    try:
        opened = path.open("rb")
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror or e}; {advice}") from None
    with opened:
        for number, raw in enumerate(opened, start=1):
            if not raw.endswith(b"\n"):
                return
            try:
                yield json.loads(raw.decode("utf-8-sig"))
            except ValueError as e:
                raise DataError(f"{path} is broken at line {number}: {e}; {advice}") from None
