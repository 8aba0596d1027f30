import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from seedbed.core.errors import DataError, InterruptedRunError, RefusedError, RunFailedError
from seedbed.engine.checkpoints import _own_hash, load_weights
from seedbed.experiments import commands
from seedbed.experiments.plan.load import load
from seedbed.experiments.run.run import create, execute, finished
from seedbed.experiments.run.signals import Signals
from tests.processes import forked


def _run(recipe, out, arm="nca", **settings):
    return commands.run(recipe, out=out, arm=arm, threads=1, say=lambda line: None, **settings)


def _stopped_after_a_step(recipe, folder, monkeypatch, *, arm):
    """A run folder whose run was told to stop, as by a signal, and saved a checkpoint after its first step."""
    create(load(recipe).plan(arm=arm, seed=0, threads=1), folder, recipe_text="x")
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Signals, "stopped", lambda self: True)
        execute(folder, say=lambda line: None)
    return folder


def _metrics(folder):
    """What a run computed: everything in metrics.jsonl but the seconds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if "seconds" not in k} for x in lines]


def _same(one, other):
    assert _metrics(one) == _metrics(other)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (one / "checkpoints/final" / name).read_bytes() == (other / "checkpoints/final" / name).read_bytes()
    first, second = (finished(f) for f in (one, other))
    assert first["evaluations"] == second["evaluations"] and first["transfer"] == second["transfer"]
    assert first["samples"] == second["samples"]
    tokens = [{s: x["tokens"] for s, x in f["ledger"].items()} for f in (first, second)]
    assert tokens[0] == tokens[1] == {"soil": {"nca": 6 * 128}, "text": {"text": 8 * 128}}


def test_a_run_leaves_a_folder_that_tells_everything(a_run):
    folder = a_run / "run"
    for name in (
        "recipe.yaml",
        "resolved.yaml",
        "env.json",
        "metrics.jsonl",
        "log.txt",
        "items/text.jsonl",
        "items/rules.jsonl",
        "final.json",
        "report.html",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert not (folder / ".lock").exists()
    final = finished(folder)
    assert final["status"] == "done"
    assert [x["run_step"] for x in _metrics(folder)] == list(range(1, 15))
    assert (
        final["transfer"]["text"]["embedding.weight"] == "fresh"
        and final["transfer"]["text"]["blocks.0.mlp.up.weight"] == "keep"
    )
    items = [json.loads(line) for line in (folder / "items/text.jsonl").read_text().splitlines()]
    assert sum(i["values"]["bytes"] for i in items) == final["evaluations"]["text"]["numbers"]["bytes"]
    everything = (folder / "env.json").read_text() + (folder / "report.html").read_text()
    assert (
        str(Path.home()) not in everything and os.uname().nodename not in json.loads((folder / "env.json").read_text()).values()
    )


def test_the_body_crosses_the_border_and_the_rows_of_text_do_not_move(recipe, tmp_path):
    scratch, nca = (_run(recipe, tmp_path / arm, arm=arm).folder for arm in ("scratch", "nca"))
    text = [x for x in _metrics(nca) if x["stage"] == "text"]
    assert text[0]["loss_nats"] != _metrics(scratch)[0]["loss_nats"]
    plan = load(recipe).plan(arm="nca", seed=0)
    from seedbed.experiments.streams import build_stream

    first, second = (
        build_stream("text", p.streams["text"]).stream.rows(0, count=3, seed=0)
        for p in (plan, load(recipe).plan(arm="scratch", seed=0))
    )
    assert all((a.tokens_T == b.tokens_T).all() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("stop_after", [1, 5, 6, 7, 13, 14])
def test_stopping_after_any_step_and_going_on_changes_nothing(a_run, tmp_path, monkeypatch, stop_after):
    folder = tmp_path / "stopped"
    create(load(a_run / "tiny.yaml").plan(arm="nca", seed=0, threads=1), folder, recipe_text="x")
    calls = iter(range(1, 100))
    monkeypatch.setattr(Signals, "stopped", lambda self: next(calls) == stop_after)
    with pytest.raises(InterruptedRunError, match="a checkpoint is saved"):
        execute(folder, say=lambda line: None)
    monkeypatch.setattr(Signals, "stopped", lambda self: False)
    commands.resume(folder, say=lambda line: None)
    _same(a_run / "run", folder)


def test_a_signal_finishes_the_step_saves_and_exits_130(recipe, tmp_path):
    folder = tmp_path / "run"
    plan = load(recipe, sets={"stages.text.budget.steps": 5000}).plan(arm="scratch", seed=0, threads=1)
    create(plan, folder, recipe_text="x")
    worker = forked("seedbed.experiments.run.worker", folder)
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").stat().st_size:
        time.sleep(0.02)
        assert worker.poll() is None, worker.communicate()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 130
    state = json.loads((next((folder / "checkpoints").glob("step-*")) / "state.json").read_text())
    assert state["counters"]["step"] == len(_metrics(folder)) > 0
    assert not (folder / ".lock").exists()


def test_a_run_killed_before_its_first_checkpoint_starts_again(a_run, tmp_path):
    whole = a_run / "run"
    folder = tmp_path / "early"
    create(load(a_run / "tiny.yaml").plan(arm="nca", seed=0, threads=1), folder, recipe_text="x")
    (folder / "metrics.jsonl").write_text((whole / "metrics.jsonl").read_text().split("\n")[0] + '\n{"stage": "soil", "st')
    (folder / ".lock").write_text("999999999 1")
    commands.resume(folder, say=lambda line: None)
    _same(whole, folder)


def test_an_existing_folder_is_never_overwritten(a_run):
    before = (a_run / "run/final.json").read_text()
    with pytest.raises(RefusedError, match="seedbed resume"):
        _run(a_run / "tiny.yaml", a_run / "run")
    assert (a_run / "run/final.json").read_text() == before


def test_a_recipe_changed_since_its_checkpoint_is_refused(recipe, tmp_path, monkeypatch):
    folder = _stopped_after_a_step(recipe, tmp_path / "run", monkeypatch, arm="scratch")
    plan = folder / "resolved.yaml"
    plan.write_text(plan.read_text().replace("clip_norm: 1.0", "clip_norm: 2.0"))
    with pytest.raises(RefusedError, match="was changed since its checkpoint"):
        commands.resume(folder, say=lambda line: None)


def test_data_changed_since_the_checkpoint_are_refused(recipe, corpus, tmp_path, monkeypatch):
    folder = _stopped_after_a_step(recipe, tmp_path / "run", monkeypatch, arm="scratch")
    before = corpus.read_text()
    corpus.write_text(before + "One more line.\n")
    with pytest.raises(RefusedError, match="the data of stream text changed"):
        commands.resume(folder, say=lambda line: None)
    corpus.write_text(before)
    assert commands.resume(folder, say=lambda line: None).final["status"] == "done"


def test_a_run_that_has_not_reached_text_cannot_be_sampled(recipe, tmp_path, monkeypatch):
    folder = _stopped_after_a_step(recipe, tmp_path / "run", monkeypatch, arm="nca")
    with pytest.raises(DataError, match="has not reached its last stage"):
        commands.sample(folder, ["a"], new_tokens=1)


def test_what_is_drawn_anew_behind_a_stage_is_no_rewind(recipe, tmp_path):
    """Neither the discarded rows of stage 0 nor a re-initialized body come back as they began."""
    recipe.write_text(recipe.read_text().replace("{from: soil}", "{from: soil, fresh: [embedding, head, mlp]}"))
    freeze = "adamw, learning_rate: 1e-9}"
    recipe.write_text(recipe.read_text().replace("optimizer: adamw", f"optimizer: {{kind: {freeze}"))
    recipe.write_text(recipe.read_text().replace("stream: soil, budget", f"stream: soil, optimizer: {{kind: {freeze}, budget"))
    nca, scratch = (_run(recipe, tmp_path / arm, arm=arm).folder / "checkpoints" for arm in ("nca", "scratch"))
    soil, text, plain = (load_weights(f) for f in (nca / "step-00000006", nca / "final", scratch / "final"))
    rows = soil["embedding.weight"].shape[0]
    assert not (text["embedding.weight"][:rows] - soil["embedding.weight"]).abs().max() < 1e-3
    assert not (text["blocks.0.mlp.up.weight"] - soil["blocks.0.mlp.up.weight"]).abs().max() < 1e-3
    assert (text["embedding.weight"] - plain["embedding.weight"]).abs().max() < 1e-6, "paired with the control's"
    name = "blocks.1.attention.query.weight"
    assert (soil[name] - plain[name]).abs().max() < 1e-6, "and so is the body"


def test_the_pictures_are_those_of_the_training_rows(a_run):
    from seedbed.experiments.streams import build_stream

    folder = a_run / "run"
    plan = load(a_run / "tiny.yaml").plan(arm="nca", seed=0)
    rows = build_stream("soil", plan.streams["soil"]).stream.rows(0, count=5, seed=0)
    caption = json.loads((folder / "exhibits/soil.json").read_text())["caption"]
    assert ", ".join(f"{r.labels['gzip_ratio']:.3f}" for r in rows) in caption


def test_a_model_with_a_document_mask_trains_and_evaluates(recipe, tmp_path):
    final = _run(recipe, tmp_path / "run", sets={"model.document_mask": True}).final
    assert final["status"] == "done" and final["evaluations"]["text"]["numbers"]["bytes"] > 0


def test_a_run_goes_on_when_nobody_reads_along(recipe, tmp_path):
    def gone(line):
        raise BrokenPipeError

    assert commands.run(recipe, out=tmp_path / "run", threads=1, say=gone).final["status"] == "done"


def test_a_folder_begun_but_not_laid_down_can_be_begun_again(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.resolved.yaml.xyz").write_text("half")
    assert _run(recipe, tmp_path / "run").final["status"] == "done"


def test_a_page_lost_to_a_kill_is_written_again(a_run, tmp_path):
    folder = shutil.copytree(a_run / "run", tmp_path / "run")
    (folder / "report.html").unlink()
    commands.resume(folder, say=lambda line: None)
    assert (folder / "report.html").is_file()


def test_a_nan_loss_stops_keeps_the_good_checkpoint_and_is_recorded(recipe, tmp_path):
    text = recipe.read_text().replace("schedule: {kind: wsd}", "schedule: {kind: wsd}\n    clip_norm: null")
    text = text.replace("budget: {steps: 8}", "budget: {steps: 4000}").replace("checkpoint_every: 5", "checkpoint_every: 1")
    recipe.write_text(text)
    with pytest.raises(RunFailedError, match=r"at step \d+ of stage 'text', at learning rate"):
        _run(recipe, tmp_path / "run", arm="scratch", sets={"model.init_std": 1e18})
    final = finished(tmp_path / "run")
    assert final["status"] == "failed" and "likely causes" in final["error"]


def test_no_space_left_is_one_sentence_and_resumable(a_run, tmp_path, monkeypatch):
    whole, recipe = a_run / "run", a_run / "tiny.yaml"
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailedError, match="no space left while writing"):
        _run(recipe, tmp_path / "full")
    monkeypatch.undo()
    assert finished(tmp_path / "full") is None, "a full disk says nothing about the method"
    commands.resume(tmp_path / "full", say=lambda line: None)
    _same(whole, tmp_path / "full")


def test_only_the_last_checkpoint_is_kept_and_a_harmed_one_is_named(a_run, tmp_path):
    folder = shutil.copytree(a_run / "run", tmp_path / "run")
    kept = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert kept == ["final", "step-00000006"], "the end, and the border that the text stage took its weights from"
    model = folder / "checkpoints/final/model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(DataError, match="altered or cut"):
        commands.sample(folder, ["a"], new_tokens=1)


def test_a_text_is_evaluated_and_continued(a_run, tmp_path):
    folder = a_run / "run"
    text = tmp_path / "more.txt"
    text.write_text("The 7th paragraph speaks of apples. " * 20)
    found = commands.evaluate_text(folder, str(text))
    assert found["tokens"] == found["bytes"] == 720
    assert found["bits_per_byte"] == pytest.approx(found["loss_nats"] / 0.6931471805599453)
    assert len(commands.sample(folder, ["a", "b"], new_tokens=5)) == 2
    with pytest.raises(DataError, match="nothing is found"):
        commands.evaluate_text(folder, str(tmp_path / "none.txt"))


def test_frozen_roles_stay_where_they_are(recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("evaluations: 2", "evaluations: 2\n    frozen: [attention]"))
    folder = _run(recipe, tmp_path / "run").folder
    before, after = (load_weights(folder / "checkpoints" / name) for name in ("step-00000006", "final"))
    for name in after:
        if name not in ("embedding.weight", "head.weight"):
            moved = not (before[name] == after[name]).all()
            assert moved is (".attention." not in name), name


@pytest.mark.parametrize(("std", "expected"), [(1.0, 1.0), ('"trained"', None)])
def test_the_fresh_embedding_has_the_asked_spread(recipe, tmp_path, std, expected):
    recipe.write_text(
        recipe.read_text()
        .replace("embedding_std: 0.02", f"embedding_std: {std}")
        .replace("change: {without: soil}", "change: {}")
    )
    recipe.write_text(recipe.read_text().replace("optimizer: adamw", "optimizer: {kind: adamw, learning_rate: 1e-9}"))
    folder = _run(recipe, tmp_path / "run").folder
    old, new = (load_weights(folder / "checkpoints" / name)["embedding.weight"] for name in ("step-00000006", "final"))
    assert float(new.std()) == pytest.approx(expected or float(old.std()), rel=0.05)


def test_other_conditions_on_resume_are_said(recipe, tmp_path, monkeypatch):
    folder = _stopped_after_a_step(recipe, tmp_path / "run", monkeypatch, arm="scratch")
    state = next((folder / "checkpoints").glob("step-*")) / "state.json"
    content = json.loads(state.read_text())
    content["environment"]["packages"]["torch"] = "0.4"
    content["self"] = _own_hash(content)
    state.write_text(json.dumps(content))
    said = []
    commands.resume(folder, say=said.append)
    assert any("will not be exact to the bit" in line for line in said)
    shutil.rmtree(folder)


@pytest.mark.parametrize("arm", ["nca", "nca_attention_only"])
def test_the_gpu_scale_runs_with_a_small_body_and_few_tokens(tmp_path, arm):
    """The published automaton, its vocabulary and row length, bfloat16 and hand-over: all but the size and the device."""
    sets = {
        "model": {"kind": "decoder", "num_layers": 1, "d_model": 16, "num_heads": 2},
        "streams.soil.batch_size": 1,
        "streams.text.batch_size": 1,
        "stages.soil.budget": {"tokens": 2048},
        "evaluate.rules.rows": 2,
        "stages.text.budget": {"tokens": 2048},
        "evaluate.text": {"kind": "bits_per_byte", "valid_bytes": 1000, "test_bytes": 1000},
        "samples": {},
    }
    result = _run("nca-text", tmp_path / "run", arm=arm, seed=11, scale="gpu", sets=sets, device="cpu")
    found = result.final["evaluations"]
    assert result.final["status"] == "done" and "bits_per_byte" in found["text"]["numbers"]
    assert found["rules"]["facts"]["completion"]["greedy_frame"] == 25
    assert json.loads((tmp_path / "run" / "env.json").read_text())["precision"] == "bfloat16"


def test_held_out_text_is_read_once_a_stage(recipe, tmp_path, monkeypatch):
    from seedbed.experiments.run import subject

    read, real = [], subject.first_documents
    monkeypatch.setattr(subject, "first_documents", lambda documents, most: read.append(most) or real(documents, most))
    folder = _run(recipe, tmp_path / "run").folder
    assert read.count(1000) == 1, "before the first step, for what the tokenizer loses, and then never again"
    assert sum("watched" in line for line in _metrics(folder) if line["stage"] == "text") == 2


def test_the_share_of_time_that_steps_waited_for_rows_is_said_and_kept(recipe, tmp_path):
    folder = _run(recipe, tmp_path / "run").folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    waited = finished(folder)["waited"]
    for stage in ("soil", "text"):
        of = [line for line in lines if line["stage"] == stage]
        share = sum(line["data_seconds"] for line in of) / sum(line["seconds"] for line in of)
        assert 0 < share < 1 and waited[stage] == pytest.approx(share)
        assert f"stage {stage} waited for its rows in {share:.2%}" in (folder / "log.txt").read_text()


def test_a_budget_in_flops_pays_for_the_optimizer_s_step_too(recipe):
    from seedbed.core.records import blank
    from seedbed.experiments.assemble import build_model, build_system, step_cost_of, steps_of

    steps, costs = [], []
    for kind in ("adamw", "muon"):
        sets = {"stages.text.budget": {"flops_run": 1e9}, "stages.text.optimizer": kind}
        plan = load(recipe, sets=sets).plan(arm="scratch", seed=0)
        model = build_model(plan, vocab_size=257)
        system = build_system(plan, plan.stages[0], model)
        steps.append(steps_of(plan, plan.stages[0], system))
        costs.append(step_cost_of(plan.stages[0], system).flops_run)
    forward = model.cost(blank(rows=4, seq_len=32)).flops_run
    assert costs[0] == 0 < costs[1] and steps[1] < steps[0]
    assert steps == [round(1e9 / (3 * forward + cost)) for cost in costs]
