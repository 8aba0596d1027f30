"""Builds the corpora inside the package (src/seedbed/sources/builtin) from a folder of downloaded data sets.

    python tools/build_builtin.py DATA_FOLDER

Sources: NLTK's Project Gutenberg selection (public domain), GSM8K train (MIT), TheAlgorithms/Python (MIT). Licence notices are
in NOTICE. A document that shares a 13-gram of words with GSM8K test, HumanEval or MBPP is left out; the counts are printed and
written to builtin/ORIGIN.json. Output bytes depend on the input only.
"""

import gzip
import json
import re
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import zstandard

N = 13
OUT = Path(__file__).parents[1] / "src/seedbed/sources/builtin"
EVALUATION = {"gsm8k/test": None, "humaneval/test": None, "mbpp_sanitized/test": None}


def lines(file: Path) -> Iterator[dict[str, object]]:
    raw = zstandard.ZstdDecompressor().stream_reader(file.open("rb")).read().decode()
    yield from (json.loads(line) for line in raw.split("\n") if line)


def ngrams(text: str, n: int = N) -> set[int]:
    """Hashes of all runs of n words (letters and digits, lower case)."""
    words = re.findall(r"\w+", text.lower())
    return {int.from_bytes(sha256(" ".join(words[i : i + n]).encode()).digest()[:8], "big") for i in range(len(words) - n + 1)}


def evaluation_ngrams(data: Path) -> set[int]:
    return {
        gram
        for name in EVALUATION
        for row in lines(data / f"{name}.jsonl.zst")
        for value in row.values()
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str)
        for gram in ngrams(text)
    }


def prose(data: Path) -> Iterator[dict[str, str]]:
    for row in lines(data / "books/books.jsonl.zst"):
        yield {"id": str(row["id"]), "text": without_notices(str(row["text"]))}


def without_notices(text: str) -> str:
    """Leave out the notices before and after the book, and every line that names the e-text project or an address."""
    for mark in ("*END*THE SMALL PRINT", "*END THE SMALL PRINT", "*** START OF THE PROJECT GUTENBERG"):
        at = text.find(mark)
        if 0 <= at < len(text) // 2:
            text = text[text.index("\n", at) + 1 :]
    text = re.split(r"\*{0,3} ?END OF (?:THE )?PROJECT GUTENBERG", text, flags=re.IGNORECASE)[0]
    lines = [x for x in text.replace("\x1a", "").split("\n") if not re.search(r"Gutenberg|etext|ebook|@", x, re.IGNORECASE)]
    return "\n".join(lines).strip() + "\n"


def math(data: Path) -> Iterator[dict[str, str]]:
    for i, row in enumerate(lines(data / "gsm8k/train.jsonl.zst")):
        yield {"id": f"gsm8k-train-{i}", "text": f"{row['question']}\n{row['answer']}\n"}


def code(data: Path) -> Iterator[dict[str, str]]:
    for split in ("train", "valid"):
        for row in lines(data / f"thealgorithms_python/{split}.jsonl.zst"):
            yield {"id": str(row["path"]), "text": str(row["text"])}


def main() -> None:
    data = Path(sys.argv[1])
    banned = evaluation_ngrams(data)
    OUT.mkdir(parents=True, exist_ok=True)
    origin = {}
    for name, documents in {"prose": prose(data), "math": math(data), "code": code(data)}.items():
        kept, dropped = [], []
        for d in documents:
            (dropped if ngrams(d["text"]) & banned else kept).append(d)
        raw = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in kept).encode()
        (OUT / f"{name}.jsonl.gz").write_bytes(gzip.compress(raw, 9, mtime=0))
        origin[name] = {
            "documents": len(kept),
            "bytes": sum(len(d["text"].encode()) for d in kept),
            "dropped_for_13_gram_overlap": [d["id"] for d in dropped],
        }
        print(name, origin[name])
    (OUT / "ORIGIN.json").write_text(json.dumps(origin, indent=1) + "\n")


if __name__ == "__main__":
    main()
