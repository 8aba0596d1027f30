"""Settings that name a file or a folder: `path: str = place(default="")`. In a run's plan they stand whole.

So a run folder can be gone on with from any other folder. Names of other kinds (builtin:prose, hub:NAME) stay as they are, but
data:NAME/... , a data set that not everybody has, becomes the place where it lies: in a folder that SEEDBED_DATA names
(several, as PATH does), or in the package.
"""

import dataclasses
import os
import re
from typing import Any

_PLACE = "place"
DATA, DATA_FOLDERS = "data:", "SEEDBED_DATA"


def place(*, default: Any) -> Any:
    """Return a field that holds a path, or a name of another kind in front of which its kind stands."""
    return dataclasses.field(default=default, metadata={_PLACE: True})


def places_of(part: type) -> list[str]:
    """Return the names of a part's settings that hold places."""
    return [f.name for f in dataclasses.fields(part) if f.metadata.get(_PLACE)]


def from_here(path: str) -> str:
    """Return a path as a reader knows it: one inside the folder that one stands in by its way from there."""
    here = os.path.join(os.getcwd(), "")
    return path.removeprefix(here) if path != here else path


def whole(path: str) -> str:
    """Return a path from the root on; what is empty, or names something by its kind, is returned as it is."""
    if path.startswith(DATA):
        return found_data(path) or path
    if not path or (re.match(r"[a-z]+:", path) and not os.path.lexists(path)):
        return path
    return os.path.abspath(os.path.expanduser(path))


def data_folders() -> list[str]:
    """Return the folders in which data sets are looked up, in this order."""
    named = [folder for folder in os.environ.get(DATA_FOLDERS, "").split(os.pathsep) if folder]
    return [*map(os.path.abspath, named), os.path.join(os.path.dirname(os.path.dirname(__file__)), "sources", "builtin")]


def found_data(path: str) -> str | None:
    """Return the place of data:NAME/... from the root on; None if no folder has a set of that name."""
    name, slash, rest = path.removeprefix(DATA).partition("/")
    places = (os.path.join(folder, name) for folder in data_folders() if name not in ("", ".", ".."))
    return next((place + slash + rest for place in places if os.path.lexists(place)), None)


def homeless(text: str) -> str:
    """Return text that may be shown around: the home folder in it, if there is one, is "~"."""
    home = os.path.expanduser("~").rstrip("/")
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if home.startswith("/") else text
