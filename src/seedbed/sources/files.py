"""Files of a corpus: which ones a path names, how they are called, and what is said of one that is bad."""

import fnmatch
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from seedbed.core.errors import DataError, nearest
from seedbed.core.places import from_here
from seedbed.sources.data_sets import data_place
from seedbed.sources.shards import is_shards

PROSE = (".txt", ".md")
LANGUAGES = {  # source code: what a document's meta["language"] says
    ".c": "C",
    ".cc": "C++",
    ".clj": "Clojure",
    ".cpp": "C++",
    ".cs": "C#",
    ".css": "CSS",
    ".cu": "CUDA",
    ".dart": "Dart",
    ".ex": "Elixir",
    ".f90": "Fortran",
    ".go": "Go",
    ".h": "C",
    ".hpp": "C++",
    ".hs": "Haskell",
    ".html": "HTML",
    ".java": "Java",
    ".jl": "Julia",
    ".js": "JavaScript",
    ".jsx": "JavaScript",
    ".kt": "Kotlin",
    ".lean": "Lean",
    ".lua": "Lua",
    ".ml": "OCaml",
    ".php": "PHP",
    ".pl": "Perl",
    ".ps1": "PowerShell",
    ".py": "Python",
    ".r": "R",
    ".rb": "Ruby",
    ".rs": "Rust",
    ".rst": "reStructuredText",
    ".scala": "Scala",
    ".sh": "Shell",
    ".sql": "SQL",
    ".swift": "Swift",
    ".tex": "TeX",
    ".toml": "TOML",
    ".ts": "TypeScript",
    ".tsx": "TypeScript",
    ".xml": "XML",
    ".yaml": "YAML",
    ".yml": "YAML",
    ".zig": "Zig",
}
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = (*PROSE, *LANGUAGES, *RECORDS)
PACKED = (".gz", ".zst", ".xz", ".bz2")
ALLOWED = (
    f"{', '.join(PROSE)}, source code (.py, .js, .rs and the like), {', '.join(RECORDS)}, each also with {' or '.join(PACKED)}"
)
BUILTIN = Path(__file__).with_name("builtin")


@dataclass(frozen=True)
class Bounds:
    """How much is read before a file is given up; a few kilobytes can unpack to more than a disk holds."""

    file_bytes: int = 2**36  # unpacked
    document_bytes: int = 2**26  # of one text, one line or one record; this much is held in memory


@dataclass(frozen=True)
class FoundFile:
    """A file, or a range of its lines.

    `name` is what ids and errors are made of: the folder's own name and the path inside it, the same wherever the folder lies.
    """

    path: Path
    name: str
    start: int = 0  # in bytes, of a plain file of lines
    stop: int | None = None
    first_line: int = 1  # the number of the line at `start`
    named: bool = True  # whether it was given by its own name, and not found in a folder or by a glob


class BadInput(DataError):  # noqa: N818 - counted as often as raised, so named for what it is
    """Something in a file that is no document: which file, where in it, of which kind (`reason`), and what to do."""

    def __init__(
        self,
        *,
        file: str,
        reason: str,  # of a few kinds, for counting: "invalid UTF-8", "truncated archive"
        problem: str,
        advice: str,
        line: int | None = None,  # the first is 1
        record: int | None = None,  # the first is 1; for files without lines
        byte: int | None = None,  # of the unpacked file; the first is 0
    ) -> None:
        self.file, self.reason, self.problem, self.advice = file, reason, problem, advice
        self.line, self.record, self.byte = line, record, byte
        where = [f", {what} {n}" for what, n in (("line", line), ("record", record), ("byte", byte)) if n is not None]
        super().__init__(f"{file}{''.join(where)}: {problem}; {advice}")

    def __reduce__(self) -> tuple[Callable[..., "BadInput"], tuple[()]]:
        return partial(BadInput, **self.__dict__), ()  # so that it travels between processes whole


def too_long(file: str, bounds: Bounds, **where: int | None) -> BadInput:
    return BadInput(
        file=file,
        reason="document too long",
        problem=f"one document is longer than {bounds.document_bytes} bytes",
        advice="cut it into shorter ones, or raise the bound",
        **where,
    )


def kind_of(path: Path) -> str:
    """Return the suffix that says how to read a file, such as ".jsonl"; "" if it is not read here."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(packing_of(path))).suffix
    return suffix if suffix in SUFFIXES else ""


def packing_of(path: Path) -> str:
    return next((p for p in PACKED if path.name.lower().endswith(p)), "")


def shown(name: str) -> str:
    r"""Return a file's name as valid UTF-8 on one line; it can be turned back.

    Bytes that are not UTF-8 become `\xff`, control characters `\u000a`, and a backslash itself is doubled.
    """
    text = os.fsencode(name).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def find_files(path: str) -> list[FoundFile]:
    """Return the files that a file, a folder, a glob, builtin:NAME or data:NAME/... names, in the order of their names' bytes.

    A folder is read with all folders inside it, each once, links to folders included; in a glob `**` stands for any number
    of folders. Files and folders whose name starts with "." are left out unless the path itself names them, and so are files
    of other kinds and what is no file (a pipe, a link to nothing). Raises DataError if nothing is left.
    """
    if path.startswith("builtin:"):
        return [_builtin(path.removeprefix("builtin:"))]
    path = data_place(path)
    place = Path(os.path.expanduser(path))
    globbed = re.search(r"[*?[]", str(place)) is not None and not os.path.lexists(place)
    if is_shards(place):
        raise DataError(f"{shown(from_here(path))} is a prepared folder; a source of kind shards (or --corpus) reads it")
    if os.path.isdir(place):
        found, what = _walk(place), f"the folder {shown(from_here(path))} holds no text file"
    elif globbed or not os.path.lexists(place):
        found, what = _glob(place) if globbed else [], f"nothing is found at {shown(from_here(path))}"
    else:
        found, what = [FoundFile(place, shown(place.name))], f"{shown(from_here(path))} is not a kind of file that is read here"
    found = [f for f in found if kind_of(f.path)]
    if not found:
        raise DataError(
            f"{what}; give a file, a folder or a glob of {ALLOWED}, or builtin:prose, builtin:math, builtin:code, "
            "data:NAME/... or hub:NAME"
        )
    return found


def _builtin(name: str) -> FoundFile:
    file = BUILTIN / f"{name}.jsonl.gz"
    if not file.is_file():
        raise DataError(f"no built-in corpus {name!r}; {nearest(name, [f.name.split('.')[0] for f in BUILTIN.glob('*.gz')])}")
    return FoundFile(file, file.name)


def _glob(pattern: Path) -> list[FoundFile]:
    first = next(i for i, part in enumerate(pattern.parts) if re.search(r"[*?[]", part))
    base, patterns = Path(*pattern.parts[:first]), pattern.parts[first:]
    if not os.path.isdir(base):
        return []
    found = _walk(base, depth=None if "**" in patterns else len(patterns) - 1)
    return [f for f in found if _matches(f.path.relative_to(base).parts, patterns)]


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or (bool(parts) and _matches(parts[1:], patterns))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _walk(root: Path, *, depth: int | None = None) -> list[FoundFile]:
    """Every file in `root` and `depth` folders down (None: all the way).

    Links to folders come last, so that a folder keeps its own name; each is entered once, so that loops end.
    """
    folders, links, seen, paths = [(root, 0)], list[tuple[Path, int]](), set[str](), []
    while folders or links:
        folder, level = folders.pop() if folders else links.pop(0)
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        try:
            names = sorted(os.listdir(folder), key=os.fsencode)
        except OSError as e:
            raise DataError(f"the folder {shown(str(folder))} cannot be read: {e.strerror}; give a readable folder") from None
        for entry in (folder / name for name in names if not name.startswith(".")):
            if os.path.isfile(entry):
                paths.append(entry)
            elif os.path.isdir(entry) and (depth is None or level < depth):
                (links if entry.is_symlink() else folders).append((entry, level + 1))
    paths.sort(key=lambda p: [os.fsencode(part) for part in p.parts])
    top = Path(os.path.abspath(root)).name
    return [FoundFile(p, shown(str(Path(top, p.relative_to(root)))), named=False) for p in paths]
