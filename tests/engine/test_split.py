"""Weights split over four ranks: the losses of one process, checkpoints for any number of ranks, no needless messages."""

import json
import threading

import pytest

from seedbed.core.errors import ConfigError
from seedbed.engine.checkpoints import load_checkpoint, load_moments, load_weights, newest_whole, read_state
from seedbed.engine.precision import prepare_machine
from seedbed.engine.ranks import Ranks
from seedbed.engine.saving import Saver
from seedbed.engine.train import Counters
from tests.engine.split_worker import SAVED_AT, STEPS, WAYS, built, trained
from tests.processes import ended, ranks

BOUND = 1e-5  # relative, on losses of six steps in float32


@pytest.fixture(scope="module")
def four(once):
    """What four ranks found, and the folder with their checkpoints."""

    def build(folder):
        codes, said = ended(ranks(4, "tests.engine.split_worker", folder))
        assert codes == [0] * 4, said[-3000:]

    folder = once("four-ranks", build)
    return json.loads((folder / "found.json").read_text()), folder


def _alone(**settings):
    return trained(*built(**{k: v for k, v in settings.items() if k != "shard"}))


@pytest.mark.parametrize("way", [w for w in WAYS if w != "bfloat16"])
def test_losses_and_gradient_norms_are_those_of_one_process(four, way):
    alone = _alone(**{**WAYS[way], "micro": 8})
    assert four[0][way] == [pytest.approx(pair, rel=BOUND) for pair in alone]


def test_in_mixed_precision_they_are_those_of_one_process_within_its_rounding(four):
    """Norms' gains are rounded to bfloat16 too where blocks are gathered in it: a relative spacing of 2^-8."""
    alone = _alone(**WAYS["bfloat16"])
    assert [pair[0] for pair in four[0]["bfloat16"]] == pytest.approx([pair[0] for pair in alone], rel=2**-8)
    assert four[0]["bfloat16"][-1][2] == pytest.approx(alone[-1][2], rel=2**-8), "read in the number type of its training"


def test_gradients_are_summed_once_a_step_however_many_micro_batches(four):
    """Once for each block and once for the rest."""
    assert four[0]["messages"] == {"1": 3, "2": 3}


@pytest.mark.parametrize("way", ["again on all", "again on two", "again whole"])
def test_what_four_ranks_saved_goes_on_over_other_groups(four, way):
    found, _ = four
    exact = way == "again on all"
    assert found[way] == (found["all"][SAVED_AT:] if exact else [pytest.approx(x, rel=BOUND) for x in found["all"][SAVED_AT:]])


def test_what_four_ranks_saved_goes_on_in_one_process_and_opens_whole(four):
    found, folder = four
    assert found["saved"] == [f"step-{SAVED_AT}", f"step-{STEPS}"], "each in its turn, the last waited for"
    stage, machine = built()
    checkpoint = folder / f"step-{SAVED_AT}"
    state = load_checkpoint(checkpoint, model=stage.system, optimizer=stage.optimizer)
    again = trained(stage, machine, at=Counters(**state["counters"]))
    assert again == [pytest.approx(pair, rel=BOUND) for pair in found["all"][SAVED_AT:]]
    shapes = {name: p.shape for name, p in stage.model.named_parameters()}
    assert {name: w.shape for name, w in load_weights(checkpoint).items()} == shapes
    assert {name: m["exp_avg"].shape for name, m in load_moments(checkpoint).items()} == shapes
    files = sorted(p.name for p in checkpoint.iterdir())
    assert len(files) == 5 and all(name.endswith((".safetensors", ".json")) for name in files), "a file a rank, no pickle"


def test_a_harmed_part_is_found(four, tmp_path):
    import shutil

    for step in (SAVED_AT, STEPS):
        shutil.copytree(four[1] / f"step-{step}", tmp_path / "checkpoints" / f"step-{step:08d}")
    harmed = next((tmp_path / "checkpoints" / f"step-{STEPS:08d}").glob("shard-00003-*"))
    raw = bytearray(harmed.read_bytes())
    raw[-1] ^= 1
    harmed.write_bytes(raw)
    said = []
    path, state = newest_whole(tmp_path / "checkpoints", say=said.append)
    assert path.name == f"step-{SAVED_AT:08d}" and state["counters"]["step"] == SAVED_AT
    assert harmed.name in said[0] and "altered or cut" in said[0]


@pytest.mark.parametrize(("shard", "message"), [("3", "4 rank.* do not make groups of 3"), ("half", "none, all or a number")])
def test_a_split_that_does_not_fit_the_ranks_is_refused(shard, message):
    with pytest.raises(ConfigError, match=message):
        prepare_machine(device="cpu", precision="float32", threads=1, width=0, ranks=Ranks(rank=0, size=4), shard=shard)


def test_training_goes_on_while_a_checkpoint_is_written_and_the_copy_stays_as_it_was(tmp_path, monkeypatch):
    stage, machine = built()
    at = Counters(positions={"soil": 0})
    gate, began = threading.Event(), threading.Event()
    from seedbed.engine import saving

    def slowly(folder, packed, write=saving.write):
        began.set()
        assert gate.wait(60)
        write(folder, packed)

    monkeypatch.setattr(saving, "write", slowly)
    steps = []
    with Saver(Ranks()) as saver:

        def save(wait):
            steps.append(at.step)
            if at.step == SAVED_AT:
                kept = {n: p.detach().clone() for n, p in stage.model.named_parameters()}
                saver(tmp_path / "three", system=stage.system, optimizer=stage.optimizer, state={}, after=lambda: None)
                steps.append(kept)

        trained(stage, machine, at=at, save=save)
        assert began.is_set() and not (tmp_path / "three").exists(), "six steps are done, the third is not written yet"
        gate.set()
        saver.wait()
    written = load_weights(tmp_path / "three")
    assert all((written[name] == value).all() for name, value in steps[1].items())
    assert any((written[n] != p.detach()).any() for n, p in stage.model.named_parameters())
    assert read_state(tmp_path / "three")["sha256"].keys() == {"model.safetensors", "optimizer.safetensors"}


@pytest.mark.parametrize("later", ["save", "wait", "leave"])
def test_what_goes_wrong_behind_the_training_is_raised(tmp_path, later):
    stage, _ = built()
    (tmp_path / "blocked").write_text("a file where a folder should be")

    def save():
        saver(tmp_path / "blocked" / "x", system=stage.system, optimizer=stage.optimizer, state={}, after=lambda: None)

    with pytest.raises(OSError), Saver(Ranks()) as saver:
        save()
        if later == "save":
            save()
        if later == "wait":
            saver.wait()
