"""Shared by the faults: the inputs of tests/data/faults, a run of them, what a folder holds."""

import shutil

import pytest

from tests.command_line import seedbed
from tests.conftest import DATA

INPUTS = DATA / "faults"


def lay_out(folder):
    """Put all inputs into a folder `faults` of this one; return that."""
    return shutil.copytree(INPUTS, folder / "faults")


@pytest.fixture
def here(tmp_path):
    """A folder with all inputs, to work in."""
    return lay_out(tmp_path)


@pytest.fixture(scope="session")
def one_run(once):
    """The run of one.yaml (RUN), beside all inputs. For reading only."""

    def build(folder):
        seedbed("run", "one.yaml", "--out", "RUN", "--threads", 1, cwd=lay_out(folder)).worked()

    return once("faults-one", build) / "faults"


def tree(folder):
    """Everything below a folder: name -> what it is."""
    return {
        str(p.relative_to(folder)): "link" if p.is_symlink() else "folder" if p.is_dir() else p.read_bytes()
        for p in sorted(folder.rglob("*"))
    }
