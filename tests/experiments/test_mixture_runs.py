"""Runs over several sources: what is drawn, recorded, evaluated and told, also when they are stopped, killed or changed on
the way."""

import json
from dataclasses import asdict

import pytest

from seedbed.core.errors import ConfigError, DataError, InterruptedRunError, RefusedError
from seedbed.core.run_record import FEEDBACK
from seedbed.experiments import commands
from seedbed.experiments.inspection import as_text, inspect
from seedbed.experiments.plan.load import load
from seedbed.experiments.prepare.prepare import prepare
from seedbed.experiments.run import stages as module
from seedbed.experiments.run.feedback import read_feedback
from seedbed.experiments.run.run import create, execute, finished
from seedbed.experiments.run.signals import Signals
from seedbed.experiments.streams import build_stream
from seedbed.experiments.study.comparison import _paired_things
from seedbed.report.page import write_page
from tests.experiments.test_run import _metrics

MIXED = """
name: mixed
model: {kind: decoder, num_layers: 1, d_model: 16, num_heads: 2}
streams:
  text:
    sources:
      apples: {kind: text, path: "PLACE/apples.txt", section_bytes: 300, valid_share: 0.1, test_share: 0.1}
      numbers: {kind: text, path: "PLACE/numbers.txt", section_bytes: 300, valid_share: 0.1, test_share: 0.1}
    tokenizer: bytes
    mixture: {kind: weighted, weights: {apples: 3, numbers: 1}, window: 8}
    seq_len: 32
    batch_size: 4
    measured_bytes: 600
stages:
  - {name: text, stream: text, budget: {steps: 16}, evaluations: 2, evaluate_at: [3]}
evaluate:
  numbers: {kind: bits_per_byte, over: numbers, valid_bytes: 600}
  apples: {kind: bits_per_byte, over: apples, valid_bytes: 600}
samples: {prompts: ["a"], tokens: 4}
checkpoint_every: 5
"""


@pytest.fixture
def mixed(tmp_path):
    (tmp_path / "apples.txt").write_text("".join(f"The {n}th basket holds {n * 7 % 13} apples.\n\n" for n in range(300)))
    (tmp_path / "numbers.txt").write_text("".join(f"{n} and {n + 1} are {2 * n + 1}\n\n" for n in range(500)))
    file = tmp_path / "mixed.yaml"
    file.write_text(MIXED.replace("PLACE", str(tmp_path)))
    return file


BY_LOSS = {
    "streams.text.mixture": {
        "kind": "by_loss",
        "weights": {"apples": 1.0, "numbers": 1.0},
        "window": 8,
        "every": 16,
        "eta": 2.0,
    }
}


def _run(recipe, out, sets=None):
    return commands.run(recipe, out=out, sets=sets or {}, threads=1, say=lambda line: None).folder


def _stopped(recipe, folder, monkeypatch, *, after, sets=None):
    create(load(recipe, sets=sets).plan(arm="run", seed=0, threads=1), folder, recipe_text="x")
    calls = iter(range(1, 100))
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Signals, "stopped", lambda self: next(calls) == after)
        execute(folder, say=lambda line: None)
    return folder


def _same(one, other):
    assert _metrics(one) == _metrics(other)
    weights = [(f / "checkpoints/final/model.safetensors").read_bytes() for f in (one, other)]
    assert weights[0] == weights[1]
    assert (
        finished(one)["evaluations"] == finished(other)["evaluations"]
        and finished(one)["mixture"] == finished(other)["mixture"]
    )


def test_the_ledger_tells_tokens_epochs_repeats_and_shares_of_every_source(mixed, tmp_path):
    final = finished(_run(mixed, tmp_path / "run"))
    assert final["ledger"]["text"]["tokens"] == {"apples": 48 * 32, "numbers": 16 * 32}, "64 rows at 3 to 1, exactly"
    apples = final["mixture"]["text"]["apples"]
    assert (apples["rows"], apples["wanted_share"], apples["achieved_share"]) == (48, 0.75, 0.75)
    sets = {"stages.text.budget": {"steps": 80}, "streams.text.mixture.weights": {"apples": 1, "numbers": 9}}
    few = finished(_run(mixed, tmp_path / "again", sets))["mixture"]["text"]["numbers"]
    size = build_stream("text", load(mixed).plan(arm="run", seed=0).streams["text"]).stream.sources["numbers"].size("train")
    assert few["rows"] == 288 and few["epochs"] == 288 / size and few["repeated_rows"] == 288 - size > 0
    assert "share wanted" in write_page(tmp_path / "run").read_text()


def test_every_evaluation_is_read_on_the_way_and_at_the_end(mixed, tmp_path):
    folder = _run(mixed, tmp_path / "run")
    found = finished(folder)["evaluations"]
    assert list(found) == ["numbers", "apples"] and {one["stage"] for one in found.values()} == {"text"}
    for name, one in found.items():
        items = [json.loads(x) for x in (folder / f"items/{name}.jsonl").read_text().splitlines()]
        assert sum(i["values"]["bytes"] for i in items) == one["numbers"]["bytes"]
    watched = {x["step"]: x["watched"] for x in _metrics(folder) if "watched" in x}
    assert list(watched) == [3, 8, 16], "every eighth step, and the third as asked"
    assert all(set(x) == {"numbers", "apples"} and set(x["apples"]) == {"loss_nats", "bits_per_byte"} for x in watched.values())


def test_an_evaluation_may_be_watched_at_steps_of_its_own_or_never(mixed, tmp_path):
    sets = {"evaluate.numbers.watch": {"every": 5}, "evaluate.apples.watch": False}
    folder = _run(mixed, tmp_path / "run", sets)
    watched = {x["step"]: list(x["watched"]) for x in _metrics(folder) if "watched" in x}
    assert watched == {step: ["numbers"] for step in (5, 10, 15, 16)}
    assert list(finished(folder)["evaluations"]) == ["numbers", "apples"], "at the end it is read all the same"


def test_held_out_sets_may_be_other_corpora_than_those_trained_on(mixed, tmp_path):
    (tmp_path / "other.txt").write_text("".join(f"{n} plums are not {n + 1} plums.\n\n" for n in range(300)))
    over = {"kind": "text", "path": str(tmp_path / "other.txt"), "section_bytes": 300, "valid_share": 0.1, "test_share": 0.3}
    other = {"kind": "bits_per_byte", "over": over, "test_bytes": 2000}
    found = finished(_run(mixed, tmp_path / "run", {"evaluate": {"other": other}}))["evaluations"]
    items = [json.loads(x) for x in (tmp_path / "run/items/other.jsonl").read_text().splitlines()]
    assert list(found) == ["other"] and found["other"]["numbers"]["bytes"] == sum(i["values"]["bytes"] for i in items) <= 2000
    assert all(i["id"].startswith("other.txt#") for i in items)


@pytest.mark.parametrize(
    ("sets", "error", "message"),
    [
        (
            {"evaluate.apples.over": "apple"},
            ConfigError,
            "evaluate.apples: it fits no stage .*no source 'apple' .*mean 'apples'",
        ),
        ({"evaluate": None}, ConfigError, r"evaluate.text: the stream text has several sources; .*\(apples, numbers\)"),
        (
            {"evaluate.apples.kind": "bits"},
            ConfigError,
            "evaluate.apples.kind: evaluate has no part 'bits'; known: bits_per_byte",
        ),
        ({"evaluate.apples.bar": {"bits": 2.0}}, ConfigError, "evaluate.apples.bar: no measure 'bits'; known: bits_per_byte"),
        ({"evaluate.apples.stage": "txt"}, ConfigError, "evaluate.apples.stage: no stage 'txt'; did you mean 'text'"),
        ({"evaluate.rules": "rule_inference"}, ConfigError, "evaluate.rules: it fits no stage of arm run .*not frames"),
        ({"streams.text.mixture": "epochs"}, ConfigError, "streams.text.mixture: 2 sources need a mixture that weighs them"),
        (
            {"streams.text.mixture.weights": {"apples": 1.0}},
            ConfigError,
            "streams.text.mixture: the mixture gives no weight to numbers",
        ),
        ({"streams.text.mixture.weights": {"apple": 1.0}}, ConfigError, "did you mean 'apples'"),
        (
            {"streams.text.sources.more": {"kind": "nca", "states": 2, "grid": 4}},
            ConfigError,
            "the source 'more' gives tokens already",
        ),
        ({"streams.text.source": "text"}, ConfigError, "a stream has one `source`, or several under `sources`"),
        ({"evaluate.apples.over": {"kind": "nca"}}, ConfigError, "evaluate.apples: over: held-out texts are of kind text"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(mixed, tmp_path, sets, error, message):
    with pytest.raises(error, match=message):
        _run(mixed, tmp_path / "run", sets)


@pytest.mark.parametrize("after", [1, 4, 7, 8, 15])
@pytest.mark.parametrize("sets", [{}, BY_LOSS], ids=["weighted", "by_loss"])
def test_stopping_and_going_on_is_exact(mixed, tmp_path, monkeypatch, after, sets):
    whole = _run(mixed, tmp_path / "whole", sets)
    folder = _stopped(mixed, tmp_path / "halves", monkeypatch, after=after, sets=sets)
    commands.resume(folder, say=lambda line: None)
    _same(whole, folder)
    assert read_feedback(whole) == read_feedback(folder)


def test_feedback_is_on_disk_with_its_position_before_a_row_behind_it_is_drawn(mixed, tmp_path, monkeypatch):
    seen = []
    real = module.Feedback.record

    def watched(self, stream, measurement):
        real(self, stream, measurement)
        seen.append((measurement.position, read_feedback(tmp_path / "run")[-1][1] == measurement))

    monkeypatch.setattr(module.Feedback, "record", watched)
    folder = _run(mixed, tmp_path / "run", BY_LOSS)
    assert seen == [(16, True), (32, True), (48, True)], "64 rows: three decisions inside, none after the last row"
    measured = [m for _, m in read_feedback(folder)]
    assert [m.step for m in measured] == [4, 8, 12] and all(set(m.values) == {"apples", "numbers"} for m in measured)
    shares = finished(folder)["mixture"]["text"]
    harder = max(measured[-1].values, key=measured[-1].values.get)
    assert shares[harder]["achieved_share"] > 0.5, "what is learned worse was shown more"


def test_a_feedback_file_that_lost_lines_is_refused(mixed, tmp_path, monkeypatch):
    folder = _stopped(mixed, tmp_path / "run", monkeypatch, after=10, sets=BY_LOSS)
    (folder / FEEDBACK).write_text((folder / FEEDBACK).read_text().splitlines(keepends=True)[0])
    with pytest.raises(RefusedError, match="is not what the checkpoint was made with"):
        commands.resume(folder, say=lambda line: None)


def test_what_was_measured_behind_the_last_checkpoint_is_measured_and_charged_again(mixed, tmp_path, monkeypatch):
    """Killed in step 10, with a checkpoint of step 5: the measurement of step 8 is cut off and made anew."""
    whole = _run(mixed, tmp_path / "whole", BY_LOSS)
    folder = tmp_path / "killed"
    create(load(mixed, sets=BY_LOSS).plan(arm="run", seed=0, threads=1), folder, recipe_text="x")
    real = module.Metrics.__call__

    def killed(self, line):
        if line["run_step"] == 10:
            raise SystemExit
        real(self, line)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(module.Metrics, "__call__", killed)
        execute(folder, say=lambda line: None)
    assert [m.step for _, m in read_feedback(folder)] == [4, 8]
    commands.resume(folder, say=lambda line: None)
    _same(whole, folder)
    spent = [finished(f)["ledger"]["text"]["evaluate"]["flops_run"] for f in (whole, folder)]
    assert spent[0] == spent[1] and read_feedback(whole) == read_feedback(folder)


def test_data_workers_do_not_run_past_a_decision(mixed, tmp_path):
    whole = _run(mixed, tmp_path / "whole", BY_LOSS)
    create(load(mixed, sets=BY_LOSS).plan(arm="run", seed=0, threads=1, data_workers=1), tmp_path / "ahead", recipe_text="x")
    execute(tmp_path / "ahead", say=lambda line: None)
    _same(whole, tmp_path / "ahead")
    assert len(read_feedback(whole)) > 1 and read_feedback(whole) == read_feedback(tmp_path / "ahead")


def test_an_altered_measurement_is_refused(mixed, tmp_path, monkeypatch):
    folder = _stopped(mixed, tmp_path / "run", monkeypatch, after=10, sets=BY_LOSS)
    lines = (folder / FEEDBACK).read_text().splitlines(keepends=True)
    facts = json.loads(lines[0])
    facts["values"]["apples"] += 1e-9
    (folder / FEEDBACK).write_text(json.dumps(facts) + "\n" + lines[1])
    with pytest.raises(RefusedError, match="is not what the checkpoint was made with"):
        commands.resume(folder, say=lambda line: None)


def test_a_line_that_a_kill_cut_off_does_not_spoil_a_change_of_weights(mixed, tmp_path, monkeypatch):
    folder = _stopped(mixed, tmp_path / "run", monkeypatch, after=10, sets=BY_LOSS)
    with (folder / FEEDBACK).open("a") as file:
        file.write('{"stream": "text", "st')
    commands.resume(folder, say=lambda line: None, weights={"text": {"apples": 1.0, "numbers": 3.0}})
    assert [m.name for _, m in read_feedback(folder)] == ["loss_nats", "loss_nats", "weights", "loss_nats"]


@pytest.mark.parametrize(
    "sets",
    [{"streams.text.sources.numbers.test_share": 1e-9}, {"evaluate.numbers.over": {"kind": "text", "path": "nowhere"}}],
)
def test_held_out_text_that_is_not_there_is_found_before_anything_is_trained(mixed, tmp_path, sets):
    (tmp_path / "numbers.txt").write_text("one\n\n" * 3)
    with pytest.raises(DataError):
        _run(mixed, tmp_path / "run", sets)
    assert not (tmp_path / "run").exists()


def test_changed_weights_hold_from_the_next_window_and_survive_a_kill(mixed, tmp_path, monkeypatch):
    change = {"text": {"apples": 0.0, "numbers": 1.0}}
    folders = []
    for name, stops in (("once", [7]), ("twice", [7, 5])):
        folder = _stopped(mixed, tmp_path / name, monkeypatch, after=stops[0])
        if len(stops) == 1:
            commands.resume(folder, say=lambda line: None, weights=change)
        else:
            commands.change_weights(folder, change)
            calls = iter(range(1, 100))
            with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
                patch.setattr(Signals, "stopped", lambda self, calls=calls, n=stops[1]: next(calls) == n)
                execute(folder, say=lambda line: None)
            commands.resume(folder, say=lambda line: None)
        folders.append(folder)
    _same(*folders)
    tokens = finished(folders[0])["ledger"]["text"]["tokens"]
    assert tokens == {"apples": 24 * 32, "numbers": (8 + 32) * 32}, (
        "row 28 lies in the fourth window: from row 32 on numbers only"
    )
    shown = [r for step in range(1, 17) for r in inspect(folders[0], step=step).rows]
    for source in ("apples", "numbers"):
        addresses = [(r.epoch, r.index) for r in shown if r.source == source]
        assert len(set(addresses)) == len(addresses), "no row twice"


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"txt": {"apples": 1.0, "numbers": 1.0}}, ConfigError, "did you mean 'text'"),
        ({"text": {"apples": 1.0}}, ConfigError, "need one number for each of: apples, numbers"),
        ({"text": {"apples": 0.0, "numbers": 0.0}}, ConfigError, r"weights must lie in 0\.\.1e\+12, and one above 0"),
        ({"text": {"apples": float("inf"), "numbers": 1.0}}, ConfigError, "weights must lie in"),
        ({"text": {"apples": 1.0, "numbers": 1.0}, "txt": {}}, ConfigError, "did you mean 'text'"),
    ],
)
def test_wrong_weights_change_nothing(mixed, tmp_path, monkeypatch, weights, error, message):
    folder = _stopped(mixed, tmp_path / "run", monkeypatch, after=3)
    with pytest.raises(error, match=message):
        commands.resume(folder, say=lambda line: None, weights=weights)
    assert not (folder / FEEDBACK).exists()
    commands.resume(folder, say=lambda line: None)
    with pytest.raises(RefusedError, match="has ended"):
        commands.resume(folder, say=lambda line: None, weights={"text": {"apples": 1.0, "numbers": 1.0}})


def test_inspect_shows_before_the_run_what_the_run_will_see(mixed, tmp_path, monkeypatch):
    before = inspect(mixed, step=6)
    rows = []
    real = module.train

    def watched(stage, **given):
        rows.extend(stage.stream.rows(20, count=4, seed=0))
        real(stage, **given)

    monkeypatch.setattr(module, "train", watched)
    folder = _run(mixed, tmp_path / "run")
    after = asdict(inspect(folder, step=6))
    assert after.pop("numbers")["run_step"] == 6 and asdict(before).pop("numbers") == {}
    assert after == {k: v for k, v in asdict(before).items() if k != "numbers"}
    assert [r.tokens for r in before.rows] == [r.tokens_T.tolist() for r in rows]
    assert [r.position for r in before.rows] == [20, 21, 22, 23]
    first = before.rows[0]
    assert first.documents and all(d.id.startswith(("apples.txt", "numbers.txt")) for d in first.documents)
    assert sum(d.tokens for d in first.documents) == 32 and first.asked == 32
    assert "document " in as_text(before) and "epoch 0" in as_text(before)
    with pytest.raises(ConfigError, match="the run has 16 steps, there is no step 17"):
        inspect(mixed, step=17)


def test_inspect_says_when_rows_are_not_decided_yet(mixed, tmp_path):
    assert len(inspect(mixed, step=4, sets=BY_LOSS).rows) == 4
    with pytest.raises(DataError, match="step 5 follows a measurement at row 16 of stream text, which is not recorded"):
        inspect(mixed, step=5, sets=BY_LOSS)
    folder = _run(mixed, tmp_path / "run", BY_LOSS)
    assert len(inspect(folder, step=5).rows) == 4


def test_prepared_shards_train_like_the_text_that_they_were_made_of(mixed, tmp_path):
    """Same documents, same sides, same tokenizer: the same losses to the bit, whether text is read on the way or was
    prepared."""
    specs = {"text": {}, "shards": {}}
    for name, every in (("apples", 7), ("numbers", 3)):
        lines = [{"text": f"{n}: {n * every % 11} of {name}, and {n % every} more\n"} for n in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        prepare([tmp_path / f"{name}.jsonl"], tmp_path / name, valid_share=0.1, test_share=0.1, say=lambda x: None)
        read = {"kind": "text", "path": str(tmp_path / f"{name}.jsonl"), "valid_share": 0.1, "test_share": 0.1}
        specs["text"][f"streams.text.sources.{name}"] = read
        specs["shards"][f"streams.text.sources.{name}"] = {"kind": "shards", "path": str(tmp_path / name)}
    folders = [_run(mixed, tmp_path / f"{kind}-run", sets) for kind, sets in specs.items()]
    own = _run(mixed, tmp_path / "own-run", {**specs["shards"], "streams.text.tokenizer": None})
    for folder in (folders[1], own):
        _same(folders[0], folder)
        assert finished(folders[0])["evaluations"] == finished(folder)["evaluations"]


def test_a_prepared_folder_takes_the_place_of_a_corpus(recipe, corpus, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    for n, part in enumerate(corpus.read_text().split("\n\n")):
        (parts / f"{n:03d}.txt").write_text(part)
    prepare([parts], tmp_path / "shards", valid_share=0.1, test_share=0.1, say=lambda x: None)
    final = commands.run(recipe, out=tmp_path / "run", corpus=str(tmp_path / "shards"), threads=1, say=lambda line: None).final
    assert final["ledger"]["text"]["tokens"] == {"shards": 8 * 128}
    prepare([parts], tmp_path / "train-only", valid_share=0.0, test_share=0.0, say=lambda x: None)
    with pytest.raises(DataError, match="evaluate.text: no document stands in the valid part"):
        commands.run(recipe, out=tmp_path / "other", corpus=str(tmp_path / "train-only"), threads=1, say=lambda line: None)


@pytest.mark.parametrize(
    ("share", "said"), [(0.5, "rows of text, what text asks"), (0.4, "what text asks, NOT the rows of text")]
)
def test_rows_drawn_by_other_weights_are_not_called_paired(share, said):
    def final(wanted):
        facts = {"a": {"wanted_share": wanted}, "b": {"wanted_share": 1 - wanted}}
        return {"data": {"text": "same"}, "mixture": {"text": facts}, "evaluations": {"text": {"questions": "9"}}}

    assert (
        _paired_things({"one": {0: final(0.5)}, "other": {0: final(share)}}, "text")
        == f"initial weights where shapes match, {said}"
    )
