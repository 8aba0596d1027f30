"""The house: rooms, their walls, what loads without torch, files that say what they are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src/seedbed"
FILES = sorted(SOURCE.rglob("*.py"))
ON_A_DEVICE = {"seedbed.nca.rollout_torch"}  # experiments hands it to a source; nothing in its room imports it
LIGHT = ["core", "nca", "sources", "curate", "mixture", "packing", "views", "schedules", "report", "tokenizers", "trackers"]


@pytest.mark.slow
def test_data_rooms_load_without_torch():
    code = (
        "import importlib, pkgutil, sys\n"
        "for room in sys.argv[1:]:\n"
        "    package = importlib.import_module(f'seedbed.{room}')\n"
        "    names = [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + '.')]\n"
        f"    for name in set(names) - {ON_A_DEVICE}: importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, f'torch was loaded by {room}'"
    )
    subprocess.run([sys.executable, "-c", code, *LIGHT], check=True)


@pytest.mark.slow
def test_the_command_line_starts_without_torch_numpy_or_numba():
    code = "import sys, seedbed.cli; assert not {'torch', 'numpy', 'numba', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_data_worker_starts_without_torch():
    """What it unpickles, and the main module of a study's run, which it imports as Python's spawn does."""
    needed = "seedbed.core.step_rows, seedbed.experiments.streams, seedbed.experiments.run.worker"
    code = f"import sys, {needed}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_run_starts_without_statistics_drawing_compiled_kernels_and_split_tensors():
    later = {"scipy", "matplotlib", "numba", "torch.distributed.tensor"}
    code = f"import sys, seedbed.experiments.commands; found = {later} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_whatever_a_command_imports_can_be_imported_first():
    """Each in a process that has nothing of ours yet, forked from one that has the libraries."""
    trees = [ast.parse(file.read_text()) for file in (SOURCE / "cli").glob("*.py")]
    wanted = {
        n.module
        for tree in trees
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and str(n.module).startswith("seedbed.")
    }
    assert len(wanted) > 15
    code = (
        "import importlib, os, sys, numba, torch\n"
        "def alone(name):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        importlib.import_module(name)\n"
        "        os._exit(0)\n"
        "    return os.waitpid(child, 0)[1] == 0\n"
        "failed = [name for name in sys.argv[1:] if not alone(name)]\n"
        "assert not failed, failed"
    )
    subprocess.run([sys.executable, "-c", code, *sorted(wanted)], check=True)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_every_file_says_in_its_first_line_what_it_is(file):
    doc = ast.get_docstring(ast.parse(file.read_text()))
    assert doc and len(doc) > 20


def test_no_room_is_empty_and_none_is_called_utils():
    for room in {f.parent for f in FILES}:
        assert room.name not in ("utils", "helpers", "common", "misc")
        assert room == SOURCE / "recipes" or len(list(room.glob("*.py"))) > 1, room


def test_methods_are_never_told_apart_by_name_outside_their_own_file():
    """No comparison of a part's registered name anywhere: a part brings its behavior with it."""
    from seedbed.experiments.assemble import rooms

    names = {n for registry in rooms().values() for n in registry} - {"default", "text", "bytes", "tokens"}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                compared = [c.value for c in [node.left, *node.comparators] if isinstance(c, ast.Constant)]
                found = names & {c for c in compared if isinstance(c, str)}
                assert not found or (found == {"wsd"} and file.name == "speed.py"), f"{file}:{node.lineno} {found}"


def test_tests_mirror_the_rooms():
    rooms = {p.name for p in SOURCE.iterdir() if p.is_dir() and (p / "__init__.py").exists()} - {"recipes"}
    without_own = {"scorers", "objectives", "cli"}  # tested with evaluate, with engine and models, and by test_cli.py
    assert rooms - without_own <= {p.name for p in Path(__file__).parent.iterdir()}


def test_methods_md_is_up_to_date():
    from seedbed.experiments.catalog import methods_page

    assert (SOURCE.parents[1] / "METHODS.md").read_text() == methods_page(), "run `make methods`"
