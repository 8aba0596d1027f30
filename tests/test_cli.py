"""The command line as a user meets it: exit codes, one paragraph an error, no traceback."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seedbed.core.errors import SeedbedError
from seedbed.experiments import console
from seedbed.experiments.estimate import cut_model, estimate
from tests.command_line import fails, process, seedbed
from tests.conftest import DATA
from tests.processes import ended, forked


@pytest.fixture(autouse=True)
def one_thread():
    """A command takes all processors if none are named; the tests that follow have one again."""
    yield
    torch.set_num_threads(1)


@pytest.mark.slow
def test_an_error_ends_the_process_with_its_code():
    process("run", "none.yaml").failed(3, saying="there is no recipe file none.yaml")


def test_every_kind_of_error_has_its_exit_code():
    assert {e.__name__: e.exit_code for e in SeedbedError.__subclasses__()} == {
        "RunFailedError": 1,
        "ConfigError": 2,
        "DataError": 3,
        "RefusedError": 4,
        "InterruptedRunError": 130,
    }


@pytest.mark.slow
def test_version_and_help():
    assert process("--version").stdout.startswith("seedbed ")
    text = process("--help").stdout
    commands = {
        "run",
        "compare",
        "tune",
        "map",
        "resume",
        "report",
        "eval",
        "sample",
        "prepare",
        "tokenizer",
        "inspect",
        "column",
        "order",
        "list",
        "explain",
        "validate",
        "doctor",
        "nca",
    }
    assert all(command in text for command in commands)


@pytest.mark.parametrize(
    ("code", "words", "saying"),
    [
        (2, ["run", "nca-txt"], "did you mean 'nca-text'"),
        (2, ["run", "nca-text", "--set", "stages.text.budgett=1"], "unknown key; did you mean 'budget'"),
        (2, ["run", "nca-text", "--set", "model.size=9M"], "no size '9M'"),
        (2, ["run", "nca-text", "--set", "streams.soil.source.band=[1.9, 2.0]"], "no rule can reach the band 1.9 to 2"),
        (2, ["run", "nca-text", "--set", "streams.soil.source.kind=nc"], "did you mean 'nca'"),
        (2, ["run", "nca-text", "--set", "nonsense"], "settings are given as NAME=VALUE"),
        (2, ["run", "nca-text", "--arm", "ncaa"], "did you mean 'nca'"),
        (2, ["run", "nca-text", "--bogus"], "--bogus"),
        (2, ["run", "nca-text", "--shard", "3"], "1 rank(s) do not make groups of 3"),
        (2, ["run", "nca-text", "--shard", "3", "--dry-run"], "1 rank(s) do not make groups of 3"),
        (2, ["run", "nca-text", "--device", "mps"], "no MPS device is found"),
        (2, ["compare", "nca-text", "--device", "mps", "--out", "study"], "no MPS device is found"),
        (2, ["compare"], "compare needs a recipe"),
        (2, ["compare", "nca-text", "--seeds", "x"], "cannot read the seeds 'x'"),
        (2, ["nca", "generate", "--states", "2", "--band", "0.5-1.0", "--rows", "1", "--out", "x.npy"], "no rule can reach"),
        (2, ["nca", "generate", "--rows", "1", "--out", "x.npy", "--band", "high"], "--band takes LO-HI"),
        (2, ["nca", "show", "--grid", "5"], "patch must divide grid"),
        (2, ["nca", "show", "--out", "x.jpg"], "must end in .png or .gif"),
        (2, ["nca", "show", "--gallery", "--band", "0.1-0.2"], "leave out --band"),
        (2, ["map", "nca-demo"], "has no `map:` block"),
        (2, ["explain", "adamv"], "did you mean 'adamw'"),
        (2, ["list", "everything"], "parts, recipes or runs"),
        (3, ["run", "none.yaml"], "there is no recipe file none.yaml"),
        (3, ["run", "nca-text", "--corpus", "missing.txt"], "nothing is found at missing.txt"),
        (3, ["eval", "norun", "--text", "x"], "not a run folder"),
        (3, ["resume", "norun"], "there is no folder norun"),
        (3, ["report", "."], "neither comparison.json nor final.json"),
        (3, ["nca", "check", "none.npz"], "cannot read none.npz"),
        (3, ["compare", "--check", "."], "no comparison.json"),
        (3, ["prepare", "nowhere", "--out", "out"], "nothing is found at nowhere"),
        (2, ["prepare", "builtin:code"], "prepare needs --out FOLDER for files"),
        (2, ["prepare", "nca-demo"], "no source of the recipe nca-demo reads an artefact"),
        (2, ["prepare", "builtin:code", "--out", "out", "--on-error", "ignore"], "is not one of"),
        (2, ["prepare", "builtin:code", "--out", "out", "--meta", "language"], "--meta takes NAME=KEY"),
        (3, ["prepare", "builtin:code", "--out", "out", "--tokenizer", "mine.json"], "there is no tokenizer 'mine.json'"),
        (3, ["validate", "."], "holds no manifest.json"),
        (2, ["tokenizer", "train", "builtin:code", "--out", "t.json", "--kind", "bpf"], "did you mean 'bpe'"),
        (2, ["tokenizer", "train", "builtin:code", "--out", "t.json", "--vocab-size", "100"], "set vocab_size to at least 257"),
        (3, ["tokenizer", "check", "none.json", "builtin:code"], "there is no tokenizer"),
        (2, ["inspect", "domain-mixture", "--step", "4711"], "there is no step 4711"),
        (2, ["inspect", "domain-mixtur", "--step", "1"], "did you mean 'domain-mixture'"),
        (2, ["column", ".", "score"], "Missing argument"),
        (2, ["column", ".", "score", "clusters"], "did you mean 'cluster'"),
        (3, ["order", ".", "best", "by_column", "column=score"], "holds no manifest.json"),
    ],
    ids=lambda x: " ".join(map(str, x)) if isinstance(x, list) else None,
)
def test_bad_input_is_one_paragraph_with_the_right_code(code, words, saying, tmp_path):
    fails(code, *words, cwd=tmp_path, saying=saying)
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_bad_corpora_name_file_and_byte(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"good\n\xfe\xff")
    fails(
        3, "run", "nca-text", "--corpus", "bad.txt", cwd=tmp_path, saying="bad.txt, line 2, byte 5: the value 0xfe is not UTF-8"
    )
    (tmp_path / "empty.txt").write_text("")
    fails(3, "compare", "nca-text", "--corpus", "empty.txt", cwd=tmp_path, saying="holds no text")
    (tmp_path / "short").mkdir()
    for name in "abc":
        (tmp_path / "short" / f"{name}.txt").write_text(name)
    fails(3, "run", "nca-text", "--corpus", "short", cwd=tmp_path, saying="a row needs 129")
    assert not (tmp_path / "runs").exists()


def test_a_broken_recipe_names_its_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: x\nmodel: {kind: decoder\n")
    fails(2, "validate", "bad.yaml", cwd=tmp_path, saying="bad.yaml is not valid YAML 1.2 at line")


def test_debug_shows_the_traceback():
    (code,), said = ended([forked("seedbed", "--debug", "run", "none.yaml")])
    assert code == 3 and "Traceback" in said


def test_rows_are_written_as_int32_and_the_same_with_two_threads(tmp_path):
    words = ["nca", "generate", "--states", 4, "--grid", 8, "--patch", 2, "--band", "0.2-0.5", "--rows", 12, "--seed", 3]
    first = json.loads(seedbed(*words, "--out", tmp_path / "a.npy", "--json").stdout)
    second = json.loads(seedbed(*words, "--out", tmp_path / "b.npy", "--threads", 2, "--json").stdout)
    rows = np.load(tmp_path / "a.npy")
    assert rows.dtype == np.int32 and rows.shape == (12, first["tokens"]) and rows.shape[1] >= 1025
    assert rows.shape[1] % 18 == 0 and (rows[:, ::18] == 256).all() and (rows[:, 17::18] == 257).all()
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert first["sha256"] == second["sha256"]


def test_vectors_are_checked_with_every_number(tmp_path):
    done = seedbed("nca", "check", DATA / "vectors_n10.npz", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["ok"] is True
    wanted = "logits_max_abs_error step_agreement float_step_agreement clear_step_agreement tokens_equal gzip_equal ok"
    assert set(wanted.split()) <= set(found)
    with np.load(DATA / "vectors_n4.npz") as archive:
        vectors = {n: archive[n] for n in archive.files}
    vectors["tokens"] = vectors["tokens"] + 1
    np.savez(tmp_path / "off.npz", **vectors)
    done = seedbed("nca", "check", tmp_path / "off.npz", "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["tokens_equal"] is False


def test_automata_are_shown_and_counted(tmp_path):
    assert "gzip ratios" in seedbed("nca", "show", "--states", 2, "--grid", 8, "--out", tmp_path / "x.png").stdout
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    shown = seedbed("nca", "show", "--states", 3, "--gallery", "--rows", 1, "--frames", 2, "--out", tmp_path / "x.gif").stdout
    assert (tmp_path / "x.gif").read_bytes().startswith(b"GIF") and shown.count("of the ceiling") == 5
    assert "▀" in seedbed("nca", "show", "--states", 2, "--grid", 4, "--rows", 1, "--terminal", cwd=tmp_path).stdout
    assert not (tmp_path / "nca.png").exists()
    found = json.loads(seedbed("nca", "stats", "--states", 2, "--rules", 50, "--band", "0.1-0.2", "--json").stdout)
    assert found["rules"] == 50 and sum(found["shares"].values()) == pytest.approx(1) and 0 < found["acceptance"] < 1
    assert 0 <= found["mutual_information_bits"]["0.5"] <= found["entropy_bits"]["0.9"] <= 1 and "0.5" in found["damage"]


def test_recipes_parts_and_their_explanations_are_listed():
    recipes = json.loads(seedbed("list", "recipes", "--json").stdout)
    assert {"nca-demo", "nca-text"} <= {r["name"] for r in recipes}
    assert "sources.nca" in seedbed("list", "parts").stdout
    assert "stage soil" in seedbed("explain", "nca-text").stdout
    assert "rule_pool" in seedbed("explain", "sources.nca").stdout
    assert "is valid; arms: scratch, nca" in seedbed("validate", "nca-demo").stdout


def test_the_resolved_recipe_and_the_estimate_are_printed_without_a_folder(recipe, tmp_path, monkeypatch):
    for where in (estimate, cut_model):
        monkeypatch.setattr(where, "LONG", 0.1)  # seconds that it times
    assert "arm: nca" in seedbed("run", recipe, "--arm", "nca", "--print-config", cwd=tmp_path).stdout
    text = seedbed("run", recipe, "--arm", "nca", "--dry-run", "--threads", 1, cwd=tmp_path).stdout
    assert "stage soil: 6 steps, 768 tokens" in text and "MiB at its peak" in text and "s a step (timed)" in text
    assert not (tmp_path / "runs").exists()


def test_a_run_is_begun_looked_at_and_gone_on_with(recipe, corpus, tmp_path):
    """Each command that is about one run, with JSON where it is offered."""
    done = seedbed("run", recipe, "--arm", "nca", "--threads", 1, "--out", "r", "--json", cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "done" and "page: r/report.html" in done.stdout
    fails(4, "run", recipe, "--arm", "nca", "--out", "r", cwd=tmp_path, saying="seedbed resume r")
    found = json.loads(seedbed("eval", "r", "--text", corpus, "--json", cwd=tmp_path).stdout)
    assert set(found) >= {"loss_nats", "tokens", "bytes", "bits_per_byte"} and found["bytes"] == corpus.stat().st_size
    assert (
        json.loads(seedbed("sample", "r", "--prompt", "The ", "--tokens", 3, "--json", cwd=tmp_path).stdout)[0]["prompt"]
        == "The "
    )
    assert seedbed("resume", "r", cwd=tmp_path).returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("runs_here")
def test_a_study_is_begun_checked_listed_and_shown(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "estimate", _estimated)
    done = seedbed("compare", recipe, "--jobs", 2, "--out", "s", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in (
        "machine:",
        "arms: scratch, nca; seeds: 0, 1",
        "estimated: 2 min",
        "verdict:",
        "the paper reports 0.06 nats",
        "page: s/",
    ):
        assert word in done.stdout, word
    assert json.loads(done.stdout.splitlines()[-1])["control"] == "scratch"
    assert seedbed("compare", "--check", "s", cwd=tmp_path).returncode == 0
    assert "done" in seedbed("list", "runs", "--folder", ".", cwd=tmp_path).stdout
    assert "page: s/report.html" in seedbed("report", "s", cwd=tmp_path).stdout
    fails(4, "compare", recipe, "--out", "s", "--set", "stages.text.clip_norm=0.1", cwd=tmp_path, saying="holds another study")


def _estimated(plan):
    """What `seedbed.experiments.estimate.estimate` would say after timing a few steps (tests/experiments/test_estimate.py)."""
    return [SimpleNamespace(stage="text", seconds=60.0, tokens=1024, parameters=9, steps=8)]


def test_from_a_folder_to_shards_a_column_an_order_and_a_look(tmp_path):
    (tmp_path / "mine").mkdir()
    for n in range(30):
        (tmp_path / "mine" / f"{n:02d}.txt").write_text(f"Letter {n}: " + "dear friend, " * n)
    (tmp_path / "mine" / "bad.txt").write_bytes(b"\xff")
    fails(
        3, "prepare", "mine", "--out", "out", cwd=tmp_path, saying=("mine/bad.txt, line 1, byte 0: the value 0xff is not UTF-8")
    )
    done = seedbed("prepare", "mine", "--out", "shards", "--on-error", "skip", "--valid-share", "0.2", "--json", cwd=tmp_path)
    manifest = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and manifest["documents"] == 30 and manifest["dropped"] == {"invalid UTF-8": 1}
    fails(4, "prepare", "mine", "--out", "shards", cwd=tmp_path, saying="holds a finished preparation")
    assert "is whole: " in seedbed("validate", "shards", cwd=tmp_path).stdout
    ids = [json.loads(x)["id"] for f in (tmp_path / "shards").glob("*-0*.jsonl") for x in f.read_text().splitlines()]
    (tmp_path / "scores.jsonl").write_text(
        "".join(json.dumps({"id": i, "value": -n}) + "\n" for n, i in enumerate(sorted(ids)))
    )
    assert seedbed("column", "shards", "score", "from_file", "path=scores.jsonl", cwd=tmp_path).returncode == 0
    assert seedbed("order", "shards", "last-first", "by_column", "column=score", cwd=tmp_path).returncode == 0
    source = "streams.text.source={kind: shards, path: shards, order: last-first, columns: [score]}"
    options = ["--scale", "smoke", "--set", source, "--set", "streams.text.tokenizer=null"]
    done = seedbed("inspect", "nca-text", "--step", "2", "--row", "1", "--json", *options, cwd=tmp_path)
    (row,) = json.loads(done.stdout)["rows"]
    assert row["source"] == "shards" and row["documents"][0]["meta"]["score"] <= 0
    file = tmp_path / "shards/train-00000.bin"
    raw = bytearray(file.read_bytes())
    raw[9] ^= 4
    file.write_bytes(raw)
    fails(3, "validate", "shards", cwd=tmp_path, saying="train-00000.bin was altered")
    fails(3, "inspect", "nca-text", "--step", "2", *options, cwd=tmp_path, saying="train-00000.bin was altered")


@pytest.mark.slow
def test_a_tokenizer_is_trained_checked_and_kept_with_the_shards(tmp_path):
    done = seedbed("tokenizer", "train", "builtin:code", "--out", "t.json", "--vocab-size", "400", "--json", cwd=tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and found["vocab_size"] == 400 and found["lossless_documents"] == found["documents"]
    fails(4, "tokenizer", "train", "builtin:code", "--out", "t.json", cwd=tmp_path, saying="exists already")
    assert seedbed("tokenizer", "check", "bytes", "builtin:code", cwd=tmp_path).returncode == 0
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"def f{n}(): return {n}"}) + "\n" for n in range(9)))
    assert seedbed("prepare", "a.jsonl", "--out", "shards", "--tokenizer", "t.json", cwd=tmp_path).returncode == 0
    (tmp_path / "t.json").unlink()
    assert "is whole" in seedbed("validate", "shards", cwd=tmp_path).stdout, "the folder holds the tokenizer itself"
    assert (tmp_path / "shards/tokenizer.json").is_file()
