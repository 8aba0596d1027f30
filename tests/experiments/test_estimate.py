"""What a dry run says: parts that add up, that scale as they should, and that a real step bears out."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from seedbed.cli.training import print_estimate
from seedbed.engine.checkpoints import pack
from seedbed.engine.placement import place
from seedbed.engine.precision import prepare_machine
from seedbed.experiments.assemble import build_model, build_stage, build_system, initialize
from seedbed.experiments.estimate import cut_model, memory
from seedbed.experiments.estimate import estimate as module
from seedbed.experiments.estimate.estimate import MIB, estimate
from seedbed.experiments.estimate.memory import memory_bytes
from seedbed.experiments.plan.load import load
from seedbed.experiments.streams import build_stream
from seedbed.models.sizes import SIZES
from tests.experiments.test_mixture_runs import BY_LOSS, mixed  # noqa: F401  # a fixture

RECIPE = """
name: sized
model: {kind: decoder, num_layers: 6, d_model: 32, num_heads: 2}
streams:
  soil:
    source: {kind: nca, states: 2, grid: 4, patch: 2}
    seq_len: 64
    batch_size: 8
stages:
  - {name: soil, stream: soil, budget: {steps: 6}, evaluations: 1}
evaluate: {rules: {kind: rule_inference, rows: 4}}
"""


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """What is timed here is timed for a tenth of the usual time; benchmarks/estimate.py holds seconds against real runs."""
    for where in (module, cut_model):
        monkeypatch.setattr(where, "LONG", 0.1)
    monkeypatch.setattr(module, "resident_bytes", lambda: 200.0 * MIB)  # it collects garbage first, of which tests have much


@pytest.fixture
def sized(tmp_path):
    file = tmp_path / "sized.yaml"
    file.write_text(RECIPE)
    return file


def _plan(recipe, sets=None, **settings):
    loaded = load(recipe, sets=sets or {})
    return loaded.plan(arm=loaded.arms[-1], seed=0, threads=1, **settings)


def _one(recipe, sets=None, **settings):
    (found,) = estimate(_plan(recipe, sets, **settings))
    return found


@cache
def _usual():
    """The estimate of the recipe as it is."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "sized.yaml"
        file.write_text(RECIPE)
        return _one(file)


def test_the_parts_are_those_of_the_whole_model_and_add_up(sized):
    found = _usual()
    model = build_model(_plan(sized), vocab_size=18)
    parameters = sum(p.numel() for p in model.parameters())
    assert found.parameters == parameters and found.tokens == 6 * 8 * 64
    assert found.parts_mib["weights"] == pytest.approx(4 * parameters / MIB)
    assert found.parts_mib["moments"] == pytest.approx(8 * parameters / MIB, rel=0.01)
    assert found.memory_mib == pytest.approx(sum(found.parts_mib.values())) and found.host_parts_mib == {}
    assert found.seconds >= found.steps * found.step_seconds > 0


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("layers", [1, 6])
def test_a_real_step_keeps_what_was_estimated(sized, layers, recompute):
    """The whole model, a whole micro-batch: what autograd keeps and the states, counted by another way than the estimate's."""
    plan = _plan(sized, {"model.num_layers": layers}, recompute=recompute)
    spec = plan.stages[0]
    built = build_stream("soil", plan.streams["soil"])
    machine = prepare_machine(device="cpu", precision="float32", threads=1, width=32, recompute=recompute)
    model = build_model(plan, vocab_size=18)
    initialize(model, spec, seed=0, old=None)
    system = build_system(plan, spec, model)
    place(system, machine)
    stage = build_stage(plan, spec, {"soil": built}, system)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    rows = built.stream.rows(0, count=8, seed=0)
    batch = cut_model.batches_of({"soil": rows}, 8, machine)["soil"]
    weights |= {x.untyped_storage().data_ptr() for x in (batch.tokens_BT, batch.targets_BT, batch.weights_BT)}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model(batch)
        loss = stage.terms[0].objective(outputs, batch=batch, context=None).sum_nats
    note(outputs.hidden_BTD)
    loss.backward()
    stage.optimizer.step()
    found = _one(sized, {"model.num_layers": layers}, recompute=recompute)
    assert found.parts_mib["activations"] * MIB == pytest.approx(sum(kept.values()), rel=0.25)
    moments = sum(v.nbytes for state in stage.optimizer.state.values() for v in state.values())
    assert found.parts_mib["moments"] * MIB == pytest.approx(moments, rel=0.01)


def test_micro_batches_and_recomputing_make_activations_smaller(sized):
    whole, half = _usual(), _one(sized, {"stages.soil.micro_batch_size": 4})
    assert half.parts_mib["activations"] == pytest.approx(whole.parts_mib["activations"] / 2, rel=0.05)
    assert half.parts_mib["gradients"] == pytest.approx(half.parts_mib["weights"])  # they are there beside activations
    again = _one(sized, recompute=True)
    assert again.parts_mib["activations"] < whole.parts_mib["activations"] / 4
    assert again.memory_mib < whole.memory_mib


def test_frozen_weights_have_no_gradients_and_no_moments(sized):
    found = _one(sized, {"stages.soil.frozen": ["block@0-3"], "stages.soil.micro_batch_size": 1})
    assert found.parts_mib["gradients"] < found.parts_mib["weights"] / 2
    assert found.parts_mib["moments"] == pytest.approx(2 * found.parts_mib["gradients"], rel=0.01)


def test_muon_keeps_one_moment_of_a_matrix(sized):
    found = _one(sized, {"stages.soil.optimizer": "muon"})
    assert found.parts_mib["weights"] < found.parts_mib["moments"] < 1.3 * found.parts_mib["weights"]


def test_the_copy_of_a_checkpoint_is_counted(sized):
    plan = _plan(sized)
    built = build_stream("soil", plan.streams["soil"])
    model = build_model(plan, vocab_size=18)
    initialize(model, plan.stages[0], seed=0, old=None)
    stage = build_stage(plan, plan.stages[0], {"soil": built}, build_system(plan, plan.stages[0], model))
    machine = prepare_machine(device="cpu", precision="float32", threads=1, width=32)
    cut_model.one_pass(stage, cut_model.batches_of({"soil": built.stream.rows(0, count=1, seed=0)}, 1, machine), machine)
    stage.optimizer.step()
    files = pack(stage.system, stage.optimizer, {}).files.values()
    found = _usual().parts_mib
    twice = found["moments"]  # a file's bytes are there twice while it is packed
    assert found["checkpoint"] == found["weights"] + found["moments"] + twice
    assert (found["checkpoint"] - twice) * MIB == pytest.approx(sum(map(len, files)), rel=0.05)


@pytest.mark.slow
def test_ranks_share_rows_and_split_weights(sized):
    plan = _plan(sized, {"stages.soil.micro_batch_size": 1}, shard="all")
    (alone,), (shared,) = estimate(plan), estimate(plan, ranks=4)
    assert shared.parts_mib["weights"] == pytest.approx(alone.parts_mib["weights"] / 4)
    assert shared.parts_mib["working"] > alone.parts_mib["working"]  # a block is gathered
    assert shared.step_seconds < alone.step_seconds


def test_large_models_are_measured_on_two_blocks_and_small_ones_whole(sized, monkeypatch):
    timed = _usual()
    assert timed.how == "timed"
    monkeypatch.setattr(module, "_QUICK", 0.0)
    cut = _one(sized)
    assert cut.how == "from 2 of 6 layers"
    assert cut.parts_mib == pytest.approx(timed.parts_mib)
    assert _one(sized, {"model.num_layers": 1}).how == "from 1 of 1 layers"


@pytest.mark.slow
def test_every_stage_is_estimated_and_a_mixture_with_feedback_too(recipe, mixed):  # noqa: F811
    assert [(s.stage, s.steps, s.tokens) for s in estimate(_plan(recipe))] == [("soil", 6, 768), ("text", 8, 1024)]
    found = _one(mixed, BY_LOSS)
    plain = _one(mixed)
    read = [module._tokens_read(p, p.stages[0], {"text": _built(p)}, steps=16) for p in (_plan(mixed, BY_LOSS), _plan(mixed))]
    assert found.steps == plain.steps == 16
    assert read[0] - read[1] == pytest.approx(2 * 4 * 600)  # two sources, at four decisions


def _built(plan):
    (name,) = plan.streams
    return build_stream(name, plan.streams[name])


def test_what_does_not_fit_is_said_with_what_helps(sized, monkeypatch, capsys):
    for where in (module, memory):
        monkeypatch.setattr(where, "memory_bytes", lambda: 1.0 * MIB)
    plan = _plan(sized)
    print_estimate(plan, as_json=True)
    *lines, last = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert "more than this machine has" in text and "of 1 there are" in text
    for way in ("micro_batch_size=N below 8", "--recompute", "--shard all", "a smaller preset"):
        assert way in text
    (said,) = json.loads(last)
    assert said["limit_mib"] == 1 and said["memory_mib"] == pytest.approx(sum(said["parts_mib"].values()))
    (found,) = estimate(_plan(sized, {"stages.soil.micro_batch_size": 1}, recompute=True))
    assert not any("micro_batch_size" in way or "recompute" in way for way in found.helps)


def test_the_limit_is_the_least_of_machine_group_and_process(monkeypatch, tmp_path):
    machine = memory_bytes()
    assert machine is not None and machine <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limited, unlimited = tmp_path / "memory.max", tmp_path / "other.max"
    limited.write_text("123456\n")
    unlimited.write_text("max\n")
    monkeypatch.setattr(memory, "_group_limits", lambda: iter([unlimited, limited, tmp_path / "none"]))
    assert memory_bytes() == 123456


@pytest.mark.slow
def test_nothing_is_changed_and_nothing_left_behind(sized, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    torch.manual_seed(7)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        estimate(_plan(sized, {}, deterministic=True).model_copy(update={"threads": 2}))
        assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
        assert not torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory
        assert float(torch.tensor(1e-39) * 0.5) != 0
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        assert sorted(tmp_path.rglob("*")) == before
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.set_flush_denormal(True)
        torch.use_deterministic_algorithms(True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [s for s in SIZES if s != "1.6B"])
def test_every_preset_is_estimated(sized, size):
    """The largest is, in a process of its own, below."""
    sets = {"model": {"kind": "decoder", "size": size}, "stages.soil.micro_batch_size": 1}
    found = _one(sized, sets)
    assert found.how == f"from 2 of {SIZES[size]['num_layers']} layers" or found.how == "timed"
    assert found.parts_mib["weights"] * MIB == 4 * found.parameters


@pytest.mark.slow
def test_a_model_that_could_never_be_trained_here_is_estimated_in_six_gib(sized):
    """The largest preset needs over 24 GiB; its dry run's process stays under 6."""
    sized.write_text(RECIPE.replace("num_layers: 6, d_model: 32, num_heads: 2", "size: 1.6B"))
    command = [sys.executable, "-m", "seedbed", "run", str(sized), "--threads", "1", "--dry-run", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    (found,) = json.loads(said.splitlines()[-1])
    assert found["parameters"] > 1.6e9 and found["how"] == "from 2 of 24 layers"
    assert found["memory_mib"] > 24 * 1024 and found["sharded_mib"] < found["memory_mib"] / 4
    assert used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) < 6 * 2**30
    assert "with --shard all" in said


def test_a_gpu_s_memory_is_told_apart_from_the_processor_s(sized):
    plan = _plan(sized)
    built = build_stream("soil", plan.streams["soil"])
    machine = prepare_machine(device="cpu", precision="float32", threads=1, width=32)
    rows = built.stream.rows(0, count=8, seed=0)
    found = cut_model.measure(
        plan, plan.stages[0], {"soil": built}, machine, rows={"soil": rows}, micro=8, limit=None, layers=6
    )
    with torch.device("meta"):
        system = build_system(plan, plan.stages[0], build_model(plan, vocab_size=18))
    trained = module._trained(system, plan.stages[0])
    sizes = module._Sizes.of(system, trained, found, micro=8, seq_len=64, machine=machine)
    both = {"process": 1e9, "several": True, "ranks": 1, "shards": 1}
    here, nothing = sizes.peak(**both)
    there, beside = replace(sizes, on_device=True).peak(**both)
    assert nothing == {} and set(here) - set(there) == set(beside) == {"checkpoint", "process"}
    assert sum(here.values()) == pytest.approx(sum(there.values()) + sum(beside.values()))
