"""Says whether the versions of constraints.txt can be installed on every Python that pyproject.toml declares.

    python tools/pins.py

For each of them pip is asked for wheels of all pins, and downloads nothing. What is published as a source archive alone is
pure Python and listed here; pip would build it on any of them.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = {"rouge_score", "sqlitedict", "word2number"}  # no wheel on the index
PYTHONS = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())


def missing(python: str, pins: list[str]) -> str:
    """Return what pip says of the first pin that has no wheel for a Python; nothing if all have one."""
    with tempfile.TemporaryDirectory() as target:
        settings = ["--dry-run", "--no-deps", "--ignore-installed", "--only-binary=:all:", "--target", target]
        command = [sys.executable, "-m", "pip", "install", "--quiet", *settings, "--python-version", python, *pins]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else next(x for x in reversed(done.stderr.splitlines()) if x.startswith("ERROR"))


def main() -> int:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if re.match(r"[\w.-]+==", line)]
    asked = [pin for pin in pins if pin.partition("==")[0].replace("-", "_") not in SOURCES]
    found = {python: missing(python, asked) for python in PYTHONS}
    for python, problem in found.items():
        print(f"Python {python}: {problem or f'wheels for all of {len(asked)} pins'}")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
