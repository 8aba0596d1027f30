"""What lies around a command: other users' installations, pipes, locales, limits, variables, signals, other people's files."""

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import seedbed as package
from seedbed.core import compiled, places
from seedbed.core.config import parse_value
from seedbed.core.errors import ConfigError, nearest
from seedbed.experiments import console
from tests.command_line import fails, process, seedbed
from tests.conftest import write_recipe
from tests.processes import forked

# An installation that one may read alone, and no home.

NO_FOLDER = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "NUMBA_CACHE_DIR": ""}


@pytest.mark.slow
def test_an_installation_that_nobody_may_write_into_works_without_a_home(here, tmp_path):
    copy = tmp_path / "installed" / "seedbed"
    shutil.copytree(Path(package.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [copy, *(p for p in copy.rglob("*") if p.is_dir())]:
        (folder / "__pycache__").write_text("no folder can be made here, not even by root")
    place = tmp_path / "temporary"
    place.mkdir()
    environment = {**os.environ, **NO_FOLDER, "TMPDIR": str(place), "PYTHONPATH": str(tmp_path / "installed")}
    environment["MPLCONFIGDIR"] = str(here / "mpl")
    for words in (
        ["doctor"],
        ["prepare", "words.txt", "--out", "P"],
    ):
        done = process(*words, cwd=here, env=environment)
        said = done.worked()
        if words == ["doctor"]:
            kept = next(line for line in said.splitlines() if line.startswith("compiled_code: "))
            assert f"{place}/seedbed-compiled-" in kept
    assert not (here / "~").exists()


def test_a_home_that_is_none_leaves_texts_as_they_are(monkeypatch):
    for home, text, shown in (
        ("/home/ada", "/home/ada/x /home/adam /home/ada-2 /home/ada", "~/x /home/adam /home/ada-2 ~"),
        ("/", "/x/y", "/x/y"),
        ("", "/x", "/x"),
        ("/dev/null", "/dev/null /x", "~ /x"),
    ):
        monkeypatch.setenv("HOME", home)
        assert places.homeless(text) == shown


def test_where_nothing_can_be_kept_everything_is_compiled_all_the_same(monkeypatch):
    def no_folder(function):
        raise RuntimeError("no locator available")

    monkeypatch.setattr(compiled, "_Kept", no_folder)
    monkeypatch.setattr(compiled, "_own_folder", str)
    assert compiled.kept_in() is None
    assert compiled.compiled(lambda x: x + 1)(2) == 3


def test_a_kept_file_that_was_cut_is_compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled.config, "CACHE_DIR", str(tmp_path))

    def tripled(x):
        return 3 * x

    assert compiled.compiled(tripled)(2) == 6
    kept = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert kept
    for harm in (lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"\x80" * 99):
        for file in (p for p in tmp_path.rglob("*") if p.is_file()):
            file.write_bytes(harm(file.read_bytes()))
        assert compiled.compiled(tripled)(2) == 6


def test_a_folder_for_compiled_code_that_others_may_write_into_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = Path(compiled._own_folder())
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    assert compiled._own_folder() == ""
    folder.rmdir()
    (tmp_path / "theirs").mkdir()
    folder.symlink_to(tmp_path / "theirs")
    assert compiled._own_folder() == ""


# A pipe that ends early, and a full standard output.


def _left():
    """A pipe whose reader has left."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def _full():
    return open("/dev/full", "w", encoding="utf-8")


def _closed():
    return None


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (["prepare", "words.txt", "--out", "P"], "P/manifest.json"),
        (["run", "one.yaml", "--threads", 1, "--out", "R"], "R/final.json"),
        (["tokenizer", "train", "words.txt", "--vocab-size", 300, "--out", "t.json"], "t.json"),
        (["nca", "generate", "--rows", 1, "--out", "r.npy"], "r.npy"),
        (["list", "recipes"], None),
        (["tokenizer", "check", "bytes", "words.txt"], None),
        (["explain", "sources.nca"], None),
    ],
)
@pytest.mark.parametrize("out", [_left, _full, _closed])
def test_nobody_listening_stops_no_work(here, words, made, out):
    done = seedbed(*words, cwd=here, out=out())
    assert made is None or (here / made).exists()
    if out is _full:
        assert "could not write to standard output: No space left on device" in done.failed(1)
        assert "cannot write to P" not in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        told = "nobody read on" in done.stderr
        assert told == (out is _left and made is not None)


@pytest.mark.slow
@pytest.mark.usefixtures("runs_here")
def test_a_study_goes_on_to_its_end_when_nobody_reads_along(recipe, tmp_path, monkeypatch):
    estimated = SimpleNamespace(stage="text", seconds=60.0, tokens=1024, parameters=9, steps=8)
    monkeypatch.setattr(console, "estimate", lambda plan: [estimated])  # which times steps for seconds
    done = seedbed("compare", recipe, "--seeds", "0", "--out", "S", cwd=tmp_path, out=_left())
    assert done.returncode == 0 and "nobody read on" in done.stderr
    assert (tmp_path / "S/comparison.json").is_file()


# Locales and characters.


@pytest.mark.slow
def test_files_are_utf8_and_signs_come_out_whatever_the_locale(tmp_path):
    (tmp_path / "x.txt").write_text("".join(f"Grüße, 漢字 und 😀, Nummer {n}.\n\n" for n in range(200)), encoding="utf-8")
    recipe = tmp_path / "signs.yaml"
    one = (Path(__file__).parents[1] / "data/faults/one.yaml").read_text()
    one = one.replace("lines_lf.txt, section_bytes: 2048", "x.txt, section_bytes: 64")
    recipe.write_text(f"# 漢字\n{one}samples: {{prompts: ['Grüße 😀']}}\n", encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    for name in ("LANG", "PYTHONIOENCODING"):
        environment.pop(name, None)
    process("run", "signs.yaml", "--out", "R", "--threads", 1, cwd=tmp_path, env=environment).worked()
    assert (tmp_path / "R/recipe.yaml").read_bytes() == recipe.read_bytes()
    assert "Grüße 😀" in (tmp_path / "R/report.html").read_text(encoding="utf-8")
    said = process("inspect", "R", "--step", 1, cwd=tmp_path, env=environment, encoding="ascii").worked()
    assert "\\U0001f600" in said
    asked = ("sample", "R", "--prompt", "Grüße 😀", "--tokens", 1)
    process(*asked, cwd=tmp_path, env=environment).failed(2, saying="PYTHONUTF8=1")
    assert "Grüße 😀" in process(*asked, cwd=tmp_path, env={**environment, "PYTHONUTF8": "1"}, encoding="utf-8").worked()


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "RUN", "--prompt", "\udcff"],
        ["sample", "RUN", "--stop", "a\udcff"],
        ["run", "one.yaml", "--set", "name=\udcff", "--out", "R"],
        ["run", "one.yaml", "--arm", "\udcff", "--out", "R"],
        ["prepare", "words.txt", "--licence", "\udcff", "--out", "P"],
        ["explain", "\udcff"],
        ["eval", "RUN", "--text", "\udcff"],
    ],
)
def test_an_argument_that_is_no_utf8_is_said_to_be_none(one_run, words):
    fails(2, *words, cwd=one_run, saying="is not UTF-8: b'")


def test_a_file_whose_name_is_no_utf8_can_be_read(here):
    name = os.fsdecode(b"b\xfcro.txt")
    shutil.copy(here / "words.txt", here / name)
    seedbed("prepare", name, "--out", "P", cwd=here).worked()
    assert json.loads((here / "P/manifest.json").read_text())["documents"] == 1


def test_signs_of_every_plane_go_through_a_model(one_run):
    for prompt in ("😀", "漢字", "\u0301", "\u202e", "\x00"[:0] + "\x07"):
        found = seedbed("sample", "RUN", "--prompt", prompt, "--tokens", 1, "--json", cwd=one_run).worked()
        assert json.loads(found)[0]["prompt"] == prompt


# Limits of a process.


def test_many_sources_of_many_shards_need_few_file_descriptors(here):
    sources = {}
    for number in range(6):
        text = "".join(json.dumps({"text": f"{number}: text {n} of its source, and some more."}) + "\n" for n in range(90))
        (here / f"{number}.jsonl").write_text(text)
        words = ("prepare", f"{number}.jsonl", "--valid-share", 0.1, "--test-share", 0.1, "--shard-tokens", 60)
        seedbed(*words, "--out", f"P{number}", cwd=here).worked()
        assert len(list((here / f"P{number}").glob("train-*.bin"))) > 40
        sources[f"s{number}"] = {"kind": "shards", "path": f"P{number}"}
    changes = {"sources": json.dumps(sources), "source": "null", "tokenizer": "null", "mixture": "weighted"}
    changes |= {"batch_size": 64, "seq_len": 32}
    with (here / "one.yaml").open("a") as recipe:
        recipe.write("evaluate: {text: {kind: bits_per_byte, over: s0}}\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 150, hard))
    try:
        sets = [word for name, value in changes.items() for word in ("--set", f"streams.text.{name}={value}")]
        seedbed("run", "one.yaml", *sets, "--threads", 1, "--out", "R", cwd=here).worked()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Variables that an earlier job left.


@pytest.mark.parametrize(
    ("left", "code", "saying"),
    [
        ({"WORLD_SIZE": "4"}, 0, "RANK, MASTER_ADDR, MASTER_PORT is not set: computing alone"),
        ({"WORLD_SIZE": "4", "RANK": "3"}, 0, "computing alone"),
        ({"WORLD_SIZE": "1", "RANK": "0"}, 0, ""),
        ({"WORLD_SIZE": ""}, 0, ""),
        ({"WORLD_SIZE": "many"}, 2, "WORLD_SIZE"),
        ({"WORLD_SIZE": "-1"}, 2, "WORLD_SIZE"),
        ({"LOCAL_RANK": "7"}, 0, ""),
    ],
)
def test_variables_of_an_earlier_job_are_looked_at(here, monkeypatch, left, code, saying):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    done = seedbed("run", "one.yaml", "--threads", 1, "--out", "R", cwd=here)
    if code:
        assert saying in done.failed(code)
        assert not (here / "R").exists()
    else:
        assert saying in done.worked()


# One bad file among many.


def test_one_broken_folder_hides_no_other(one_run, a_study, tmp_path):
    runs = tmp_path / "runs"
    harms = {
        "cut": ("final.json", lambda raw: raw[: len(raw) // 2]),
        "empty": ("final.json", lambda raw: b""),
        "list": ("final.json", lambda raw: b"[]"),
        "nothing": ("final.json", lambda raw: b"{}"),
        "bytes": ("final.json", lambda raw: b"\xff\xfe"),
    }
    for name, (file, harm) in harms.items():
        shutil.copytree(one_run / "RUN", runs / name)
        (runs / name / file).write_bytes(harm((runs / name / file).read_bytes()))
    shutil.copytree(one_run / "RUN", runs / "whole")
    shutil.copytree(a_study / "out", runs / "study")
    (runs / "study/comparison.json").write_text("{")
    shutil.copytree(a_study / "out", runs / "good")
    rows = {r["folder"]: r["status"] for r in json.loads(seedbed("list", "runs", "--json", cwd=tmp_path).worked())}
    assert rows["runs/whole"] == "done" and "nca against scratch is" in rows["runs/good"]
    whole = [name for name in [*harms, "study"] if not rows[f"runs/{name}"].startswith("broken: ")]
    assert not whole, rows


# Values of the command line.


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("my #1.txt", "my #1.txt"),
        ("a: b", "a: b"),
        ("*star", "*star"),
        ("@at", "@at"),
        ("#1", "#1"),
        ("- 3", "- 3"),
        ("? x", "? x"),
        ("a\\nb", "a\\nb"),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("0x10.txt", "0x10.txt"),
        ("", None),
        ("null", None),
        ("~", None),
        ("~/x", "~/x"),
        ("true", True),
        ("1e-4", 1e-4),
        ("007", 7),
        ('"1e-4"', "1e-4"),
        ("'a #1'", "a #1"),
        ("[a, b]", ["a", "b"]),
        ("{a: 1}", {"a": 1}),
        ("{a: 'x #1'}", {"a": "x #1"}),
    ],
)
def test_a_value_is_what_a_user_typed(given, meant):
    found = parse_value(given)
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize("given", ["'a' b", "[a] # b", "{a: 1", "[a", '"a'])
def test_a_value_that_would_be_cut_is_refused(given):
    with pytest.raises(ConfigError):
        parse_value(given)


def test_a_path_with_signs_reaches_the_source_whole(here):
    shutil.copy(here / "lines_lf.txt", here / "my #1: book.txt")
    change = "streams.text.source.path=my #1: book.txt"
    assert "my #1: book.txt" in seedbed("run", "one.yaml", "--set", change, "--print-config", cwd=here).worked()


def test_the_name_that_was_given_is_no_advice():
    assert nearest("text", ["text", "test"]) == "did you mean 'test'?"
    assert nearest("zzz", ["text"]) == "known: text"


# Signals, and options in a narrow terminal.


def test_a_terminal_that_is_closed_saves_the_run(recipe, tmp_path):
    long = ("--set", "stages.text.budget.steps=4000", "--set", "checkpoint_every=100000")
    run = forked("seedbed", "run", recipe, "--threads", 1, "--out", "R", *long, cwd=tmp_path)
    metrics = tmp_path / "R/metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text().count("\n") > 10):
        time.sleep(0.01)
    run.send_signal(signal.SIGHUP)
    assert run.wait(60) == 130
    assert (tmp_path / "R/checkpoints").is_dir() and any((tmp_path / "R/checkpoints").iterdir())
    assert not (tmp_path / "R/final.json").exists()


@pytest.mark.slow
def test_option_names_are_never_cut():
    narrow = {**os.environ, "COLUMNS": "40", "TERM": "dumb"}
    for command in ("run", "prepare", "compare"):
        said = process(command, "--help", env=narrow).worked()
        assert "…" not in said
        assert {"run": "--allow-local-code", "prepare": "--document-bytes", "compare": "--allow-local-code"}[command] in said


# Other people's files in a folder of texts.


@pytest.fixture
def code_folder(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.py").write_text(f"def f{number}(x):\n    return x + {number}\n" * 9)
    (folder / "package.json").write_text('{"name": "x", "version": "1"}')
    (folder / "tsconfig.json").write_text('{"compilerOptions": {}}')
    return folder


def test_settings_files_among_texts_are_passed_over_and_counted(code_folder, tmp_path):
    seedbed("prepare", "code", "--out", "P", cwd=tmp_path).worked()
    manifest = json.loads((tmp_path / "P/manifest.json").read_text())
    assert manifest["documents"] == 40
    assert sum(manifest["dropped"].values()) == 2
    fails(3, "prepare", "code/package.json", "--out", "Q", cwd=tmp_path, saying="package.json")


def test_a_corpus_with_bad_files_is_read_without_them_if_that_is_asked_for(code_folder, tmp_path):
    recipe = write_recipe(tmp_path, code_folder)
    (code_folder / "bad.py").write_bytes(b"\xff\xfe\x00")
    fails(3, "run", recipe, "--out", "R", cwd=tmp_path, saying="bad.py, line 1, byte 0")
    skip = ("--set", "streams.text.source.on_error=skip")
    said = seedbed("run", recipe, *skip, "--threads", 1, "--out", "R", cwd=tmp_path).worked()
    assert "left out of text: 1 invalid UTF-8" in said
    left = json.loads((tmp_path / "R/final.json").read_text())["left_out"]
    assert left["text"]["text"]["invalid UTF-8"] == 1
