"""Where things are read and written: nothing is overwritten or mixed, and what can be seen at once is not found out late."""

import json
import os
import shutil
from contextlib import contextmanager

import pytest

from seedbed.core import durable
from seedbed.core.errors import RefusedError
from seedbed.experiments.prepare import tokenizing
from seedbed.experiments.run.stages import Running
from seedbed.experiments.study import side_by_side
from seedbed.nca.automaton import Automaton
from tests.command_line import fails, process, seedbed
from tests.faults.conftest import lay_out, tree
from tests.processes import ended, forked

WRITERS = {
    "run": ["run", "one.yaml"],
    "compare": ["compare", "nca-demo", "--scale", "smoke"],
    "tune": ["tune", "STUDY/tiny.yaml"],
    "map": ["map", "nca-map", "--scale", "smoke"],
    "prepare": ["prepare", "words.txt"],
    "tokenizer": ["tokenizer", "train", "words.txt", "--vocab-size", 300],
    "generate": ["nca", "generate", "--rows", 4],
    "show": ["nca", "show"],
    "export": ["export", "RUN"],
    "pack": ["pack", "STUDY/out"],
}


@pytest.fixture
def taken(one_run, a_study, tmp_path):
    """A folder with inputs, a run and a study, and with everything that may stand where something is to be written."""
    folder = lay_out(tmp_path)
    (folder / "RUN").symlink_to(one_run / "RUN")
    (folder / "STUDY").symlink_to(a_study)
    for end in ("", ".png"):
        (folder / f"file{end}").write_text("mine")
        (folder / f"full{end}").mkdir()
        (folder / f"full{end}" / "tokenizer_config.json").write_text("{}")
        (folder / f"dead{end}").symlink_to("/nowhere/x")
    return folder


@pytest.fixture
def no_work(monkeypatch):
    """What computes raises: an error that comes before it is the one that a user wants."""

    def work(*given, **more):
        raise AssertionError("the work was begun")

    for where, name in (
        (Running, "run"),
        (side_by_side, "_start"),
        (tokenizing, "train_tokenizer"),
        (Automaton, "rollout"),
    ):
        monkeypatch.setattr(where, name, work)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("target", ["file", "full", "dead", "file/below"])
@pytest.mark.parametrize("command", WRITERS)
def test_a_place_that_is_taken_is_refused_before_the_work(taken, command, target):
    before = tree(taken)
    end = ".png" if command == "show" else ""
    said = fails(4, *WRITERS[command], "--out", target + end, cwd=taken)
    assert target.split("/")[0] in said
    assert tree(taken) == before


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", WRITERS)
def test_a_place_where_one_may_not_write_is_refused_before_the_work(taken, command, monkeypatch):
    before = tree(taken)
    monkeypatch.setattr(durable.os, "access", lambda path, mode: not mode & os.W_OK)
    end = ".png" if command == "show" else ""
    fails(4, *WRITERS[command], "--out", f"new{end}", cwd=taken, saying="you may not write into")
    assert tree(taken) == before


def test_files_of_a_preparation_keep_their_names_to_themselves(here):
    seedbed("prepare", "words.txt", "--out", "P", cwd=here).worked()
    document = json.loads(next((here / "P").glob("train-0*.jsonl")).read_text().splitlines()[0])["id"]
    (here / "scores.jsonl").write_text(json.dumps({"id": document, "value": 1}) + "\n")
    seedbed("column", "P", "score", "cluster", cwd=here).worked()
    seedbed("order", "P", "rising", "by_column", "column=score", cwd=here).worked()
    before = tree(here)
    fails(4, "column", "P", "score", "from_file", "path=scores.jsonl", cwd=here, saying="score")
    fails(4, "column", "P", "score", "cluster", cwd=here, saying="score")
    fails(4, "order", "P", "rising", "by_column", "column=score", cwd=here, saying="rising")
    assert tree(here) == before


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    "words",
    [
        "prepare words.txt --against TYPO --out NEW",
        "prepare words.txt --decontaminate TYPO --out NEW",
        "prepare words.txt --tokenizer TYPO --out NEW",
        "prepare words.txt TYPO --out NEW",
        "tokenizer train TYPO --out NEW",
        "tokenizer train words.txt TYPO --out NEW",
        "tokenizer check TYPO words.txt",
        "tokenizer check bytes words.txt TYPO",
        "run TYPO --out NEW",
        "run one.yaml --track TYPO --out NEW",
        "run one.yaml --corpus TYPO --out NEW",
        "run one.yaml --arm TYPO --out NEW",
        "run one.yaml --shard TYPO --out NEW",
        "run one.yaml --set streams.text.source.path=TYPO --out NEW",
        "run one.yaml --set streams.text.tokenizer={kind:\\sfile,path:\\sTYPO} --out NEW",
        "compare nca-demo --scale TYPO --out NEW",
        "compare nca-demo --scale smoke --track TYPO --out NEW",
        "compare nca-demo --scale smoke --corpus TYPO --out NEW",
        "compare nca-demo --scale smoke --seeds TYPO --out NEW",
        "compare --check TYPO",
        "tune TYPO --out NEW",
        "map TYPO --out NEW",
        "inspect TYPO --step 1",
        "diff RUN TYPO",
        "export TYPO --out NEW",
        "export RUN --to TYPO --out NEW",
        "pack TYPO --out NEW",
        "report TYPO",
        "resume TYPO",
        "sample TYPO",
        "eval RUN --text TYPO",
        "eval TYPO --text words.txt",
        "track TYPO --to tensorboard",
        "track RUN --to TYPO",
        "validate TYPO",
        "explain TYPO",
        "nca check TYPO",
        "nca generate --rows 2 --split TYPO --out NEW",
        "nca generate --rows 2 --band TYPO --out NEW",
    ],
)
def test_what_is_named_on_a_command_line_is_looked_at_first(taken, words):
    before = tree(taken)
    done = seedbed(*(word.replace("\\s", " ") for word in words.split()), cwd=taken)
    assert done.returncode in (2, 3, 4)
    assert "TYPO" in done.failed(done.returncode)
    assert tree(taken) == before


def test_after_a_name_was_wrong_the_right_command_works(here):
    for name in ("--against", "--decontaminate"):
        fails(3, "prepare", "words.txt", name, "TYPO", "--out", "P", cwd=here)
    seedbed("prepare", "words.txt", "--against", "lines_lf.txt", "--out", "P", cwd=here).worked()


@contextmanager
def _one_was_faster(folder, file):
    """What `locked` does, after another process took the place between the check and the lock."""
    folder.mkdir(parents=True)
    (folder / file).write_text("of the other process")
    yield


@pytest.mark.parametrize(
    ("words", "module", "file"),
    [
        (["run", "one.yaml"], "run.run", "resolved.yaml"),
        (["prepare", "words.txt"], "prepare.prepare", "manifest.json"),
        (["compare", "nca-demo", "--scale", "smoke"], "study.study", "study.json"),
    ],
)
def test_of_two_that_begin_at_once_the_second_sees_the_first(here, words, module, file, monkeypatch, no_work):
    import importlib

    where = importlib.import_module(f"seedbed.experiments.{module}")
    monkeypatch.setattr(where, "locked", lambda folder: _one_was_faster(folder, file))
    done = seedbed(*words, "--out", "BOTH", cwd=here)
    assert done.returncode in (3, 4), done.stderr
    assert tree(here / "BOTH") == {file: b"of the other process"}


def test_two_runs_into_one_folder_leave_the_run_of_one(here):
    command = ("seedbed", "run", "one.yaml", "--out", "BOTH", "--threads", 1, "--seed")
    codes, said = ended([forked(*command, seed, cwd=here) for seed in (1, 2)])
    assert sorted(codes) == [0, 4], said
    seed = json.loads((here / "BOTH/final.json").read_text())["seed"]
    assert codes[seed - 1] == 0
    assert f"\nseed: {seed}\n" in (here / "BOTH/resolved.yaml").read_text()


def test_a_file_that_came_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(RefusedError, match="nothing is overwritten"), durable.whole_file(tmp_path / "x", over=False) as file:
        file.write(b"mine")
        (tmp_path / "x").write_text("another's")
    with pytest.raises(RefusedError, match="nothing is overwritten"), durable.whole_folder(tmp_path / "y") as made:
        (made / "a").write_text("mine")
        (tmp_path / "y").mkdir()
        (tmp_path / "y" / "b").write_text("another's")
    assert tree(tmp_path) == {"x": b"another's", "y": "folder", "y/b": b"another's"}


@pytest.mark.parametrize("recipe", ["one.yaml", "lossy.yaml"])
def test_a_run_folder_carries_what_its_model_takes(here, tmp_path, recipe):
    seedbed("run", recipe, "--out", "R", "--threads", 1, cwd=here).worked()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(here / "R", elsewhere / "R")
    shutil.copy(here / "words.txt", elsewhere / "other.txt")
    shutil.rmtree(here)
    seedbed("sample", "R", "--prompt", "the", "--tokens", 4, cwd=elsewhere).worked()
    assert "bits_per_byte: " in seedbed("eval", "R", "--text", "other.txt", cwd=elsewhere).worked()
    for form in ("hf", "safetensors"):
        seedbed("export", "R", "--to", form, "--out", form, cwd=elsewhere).worked()
    seedbed("diff", "R", "R", cwd=elsewhere).worked()
    fails(3, "inspect", "R", "--step", 1, cwd=elsewhere, saying="faults/")  # that is made of the text itself


def test_paths_of_a_run_stand_whole_in_its_plan(here):
    seedbed("run", "one.yaml", "--out", "R", "--threads", 1, cwd=here).worked()
    assert f"path: {here / 'lines_lf.txt'}" in (here / "R/resolved.yaml").read_text()


def test_files_of_one_name_are_two_and_one_file_twice_is_one(tmp_path):
    for folder in ("y1", "y2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.txt").write_text(f"This is the text of {folder}.")
    seedbed("prepare", "y1/data.txt", "y2/data.txt", "--out", "P", cwd=tmp_path).worked()
    manifest = json.loads((tmp_path / "P/manifest.json").read_text())
    assert manifest["documents"] == 2
    for again in ("y1/data.txt", "./y1/data.txt", str(tmp_path / "y1/data.txt"), "y1/../y1/data.txt"):
        fails(2, "prepare", "y1/data.txt", again, "--out", "Q", cwd=tmp_path, saying="twice")


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002])
def test_files_have_the_rights_that_the_umask_leaves(here, one_run, mask):
    before = {p for p in here.rglob("*")}
    old = os.umask(mask)
    try:
        seedbed("prepare", "words.txt", "--out", "P", cwd=here).worked()
        seedbed("column", "P", "near", "cluster", cwd=here).worked()
        seedbed("order", "P", "o", "by_column", "column=near", cwd=here).worked()
        seedbed("tokenizer", "train", "words.txt", "--vocab-size", 300, "--out", "t.json", cwd=here).worked()
        seedbed("nca", "generate", "--rows", 1, "--out", "r.npy", cwd=here).worked()
        seedbed("nca", "show", "--rows", 1, "--out", "s.png", cwd=here).worked()
        seedbed("export", one_run / "RUN", "--to", "hf", "--out", "E", cwd=here).worked()
        seedbed("run", "one.yaml", "--out", "R", "--threads", 1, cwd=here).worked()
    finally:
        os.umask(old)
    made = [p for p in here.rglob("*") if p not in before]
    assert len(made) > 30
    wrong = {str(p): oct(p.stat().st_mode & 0o777) for p in made if p.stat().st_mode & 0o666 != 0o666 & ~mask}
    assert not wrong


@pytest.mark.slow
def test_the_folder_one_stands_in_is_on_nobody_s_import_path(recipe, tmp_path):
    for name in ("queue", "random", "torch", "numba", "seedbed", "decimal"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\nraise SystemExit(9)\n"
        )
    words = ("--seeds", "0", "--jobs", 2, "--data-workers", 1)
    process("compare", recipe, *words, "--out", "S", cwd=tmp_path, script=True).worked()
    process("prepare", "corpus.txt", "--workers", 2, "--out", "P", cwd=tmp_path, script=True).worked()
    assert not (tmp_path / "executed").exists()
