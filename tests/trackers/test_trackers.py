"""Services really written to and read back: what stands there after one session, after a second, after sending again."""

import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from seedbed import trackers
from seedbed.core.errors import ConfigError, DataError
from seedbed.core.protocols import Tracker, TrackerKind
from seedbed.trackers.lines import lasting_id, numbers
from seedbed.trackers.tensorboard import TensorBoard

FACTS = {"name": "tiny", "model": {"kind": "decoder", "d_model": 32}}


def line(step, **more):
    return {"stage": "text", "step": step, "run_step": step, "loss_nats": float(step), **more}


def test_a_line_becomes_flat_numbers_without_text_and_x_axis():
    found = numbers(
        {"stage": "text", "step": 3, "run_step": 9, "valid": {"prose": {"loss_nats": 2.5}}, "odd": True, "none": None}
    )
    assert found == {"step_of_stage": 3, "valid/prose/loss_nats": 2.5}


def test_an_id_is_drawn_once_and_kept_in_the_run_folder(tmp_path):
    first = lasting_id(tmp_path / "a" / "id")
    assert lasting_id(tmp_path / "a" / "id") == first == (tmp_path / "a" / "id").read_text().strip()
    assert lasting_id(tmp_path / "b" / "id") != first


@pytest.mark.parametrize("name", sorted(trackers.parts))
def test_a_service_keeps_the_room_s_promise(name):
    kind = trackers.parts.build(name)
    assert isinstance(kind, TrackerKind)
    with pytest.raises(ConfigError, match="track.nonsense: unknown setting"):
        trackers.parts.build({"kind": name, "nonsense": 1}, path="track")


@pytest.mark.parametrize("name", sorted(trackers.parts))
def test_a_missing_package_is_named_with_the_line_that_installs_it(name, monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=rf"with {name} needs a further package: pip install 'seedbed\[track\]'"):
        trackers.parts.build(name).check()


def test_wandb_waits_a_positive_time():
    with pytest.raises(ConfigError, match=r"wait_seconds must lie in 0\.\.86,400 \(0 excluded\), got 0"):
        trackers.parts.build({"kind": "wandb", "wait_seconds": 0.0})


# TensorBoard, read back by its own reader


@pytest.fixture
def read_events():
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="seedbed[track]")

    from tensorboard.backend.event_processing import plugin_event_accumulator as for_pages

    def read(log, tag="loss_nats"):
        events = accumulator.EventAccumulator(str(log), size_guidance={"scalars": 0, "tensors": 0}).Reload()
        points = [(e.step, e.value) for e in events.Scalars(tag)]
        shown = for_pages.EventAccumulator(str(log), tensor_size_guidance={"scalars": 0, "text": 0}).Reload()
        assert points == [(e.step, e.tensor_proto.float_val[0]) for e in shown.Tensors(tag)]
        assert len(events.Tensors("plan")) == len(shown.Tensors("plan")) == 1
        return points, events

    return read


def opened(folder, *, from_step=0):
    return TensorBoard().open(folder=folder, name="tiny-nca-seed-0", facts=FACTS, from_step=from_step)


def test_event_files_hold_every_number_by_step_and_the_plan(tmp_path, read_events):
    tracker = opened(tmp_path)
    assert isinstance(tracker, Tracker) and tracker.held_step == 0
    assert str(tmp_path / "tensorboard") in tracker.where
    for step in (1, 2):
        tracker.record(line(step, valid={"prose": {"loss_nats": 0.5 * step}}))
    points, events = read_events(tmp_path / "tensorboard", tag="valid/prose/loss_nats")  # before it is closed
    tracker.close()
    assert points == [(1, 0.5), (2, 1.0)]
    assert set(events.Tags()["scalars"]) == {"step_of_stage", "loss_nats", "valid/prose/loss_nats"}
    plan = events.Tensors("plan")[0].tensor_proto.string_val[0].decode()
    assert json.loads(plan.strip("`")) == FACTS


def test_points_after_the_checkpoint_are_taken_back_when_a_run_goes_on(tmp_path, read_events):
    killed = opened(tmp_path)
    for step in range(1, 7):
        killed.record(line(step))
    again = opened(tmp_path, from_step=4)
    assert again.held_step == 4
    for step in range(5, 9):
        again.record(line(step, loss_nats=10.0 * step))
    again.close()
    points, _ = read_events(tmp_path / "tensorboard")
    assert points == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60), (7, 70), (8, 80)]


def test_a_run_killed_before_its_first_checkpoint_leaves_no_point(tmp_path, read_events):
    for loss in (1.0, 2.0):
        tracker = opened(tmp_path)
        tracker.record(line(1, loss_nats=loss))
        tracker.close()
    assert read_events(tmp_path / "tensorboard")[0] == [(1, 2.0)]


@pytest.mark.usefixtures("read_events")
def test_a_service_first_asked_for_when_a_run_goes_on_has_nothing_yet(tmp_path):
    assert opened(tmp_path, from_step=4).held_step == 0


@pytest.mark.usefixtures("read_events")
def test_a_folder_for_many_runs_has_one_for_each(tmp_path):
    kind = TensorBoard(folder=str(tmp_path / "all"))
    kind.open(folder=tmp_path / "run", name="tiny-nca-seed-0", facts=FACTS, from_step=0).close()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert [f.parent for f in files] == [tmp_path / "all" / "tiny-nca-seed-0"]
    assert socket.gethostname() not in files[0].name.split(".")


# wandb and trackio keep settings for the whole process, so each session is one, as it is for a run

SITTING = """
import sys
from pathlib import Path
from seedbed import trackers
name, folder, from_step, last, loss = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
facts = {"name": "tiny", "model": {"kind": "decoder", "d_model": 32}}
tracker = trackers.parts.build(name).open(folder=folder, name="tiny-nca-seed-0", facts=facts, from_step=from_step)
for step in range(tracker.held_step + 1, last + 1):
    tracker.record({"stage": "text", "step": step, "run_step": step, "valid": {"prose": {"loss_nats": loss * step}}})
tracker.close()
print(tracker.held_step, tracker.where)
"""


def sit(name, folder, *, from_step, last, loss, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "TRACKIO_", "HF_"))}
    words = [sys.executable, "-c", SITTING, name, str(folder), *map(str, (from_step, last, loss))]
    done = subprocess.run(words, env=kept | variables, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    held, _, where = done.stdout.strip().partition(" ")
    return int(held), where


def wandb_records(file):
    """The records of a .wandb file: a LevelDB log of blocks of 32 KiB behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        parts += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def wandb_losses(file):
    found = {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            found[int(items["_step"])] = items["valid/prose/loss_nats"]
    return found


@pytest.mark.slow
def test_wandb_offline_keeps_all_numbers_and_every_sitting_is_whole_under_one_id(tmp_path):
    pytest.importorskip("wandb", reason="seedbed[track]")
    places = {f"WANDB_{n}_DIR": str(tmp_path / "wandb's") for n in ("CACHE", "CONFIG", "DATA")}
    held, where = sit("wandb", tmp_path, from_step=0, last=6, loss=1, **places)
    assert held == 0 and where.startswith("offline, to ") and "`wandb sync " in where
    held, _ = sit("wandb", tmp_path, from_step=4, last=8, loss=10, **places)
    assert held == 0, "wandb cannot go on with a folder that it wrote offline, so it gets all lines again"
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    run_id = (tmp_path / "wandb" / "id").read_text().strip()
    assert first.name == second.name == f"run-{run_id}.wandb"
    assert wandb_losses(first) == {step: step for step in range(1, 7)}
    assert wandb_losses(second) == {step: 10 * step for step in range(1, 9)}
    run = next(r.run for r in wandb_records(first) if r.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name, run.host) == ("seedbed", "tiny-nca-seed-0", "")
    assert {u.key: json.loads(u.value_json) for u in run.config.update if u.key != "_wandb"} == FACTS
    told = " ".join(map(str, wandb_records(first)))
    for private in (socket.gethostname(), str(Path.home()), str(tmp_path)):
        found = re.search(rf"(?<!\w){re.escape(private)}(?!\w)", told)
        assert found is None, f"only numbers and the plan are handed over: {private}"


class FakeRun:
    """What wandb's run says of itself online; there is no server here to ask."""

    resumed, step, disabled, offline, url = True, 7, False, False, "https://example.org/run"

    class settings:  # noqa: N801
        sync_dir = "there"


def test_wandb_online_goes_on_behind_the_last_step_that_the_service_has():
    from seedbed.trackers.wandb import WandbRun

    tracker = WandbRun(FakeRun())
    assert tracker.held_step == 6, "step is the next one"
    assert tracker.where == "to https://example.org/run"


@pytest.mark.slow
def test_trackio_holds_the_newest_sitting_alone(tmp_path):
    pytest.importorskip("trackio", reason="seedbed[track]")
    places = {"TRACKIO_DIR": str(tmp_path / "base"), "HF_HOME": str(tmp_path / "hf")}
    held, where = sit("trackio", tmp_path / "run", from_step=0, last=6, loss=1, **places)
    assert held == 0 and "`trackio show --project seedbed`" in where
    sit("trackio", tmp_path / "run", from_step=4, last=8, loss=10, **places)
    sit("trackio", tmp_path / "another run", from_step=0, last=2, loss=7, **places)  # of the same name, and left alone
    code = """
        import json, trackio
        from trackio.sqlite_storage import SQLiteStorage
        found = []
        for run in trackio.Api().runs("seedbed"):
            logs = SQLiteStorage.get_logs("seedbed", run.name, run_id=run.id)
            found.append([run.id, run.config, {x["step"]: x["valid/prose/loss_nats"] for x in logs}])
        print(json.dumps(found))
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(words, env=os.environ | places, capture_output=True, text=True, timeout=900, check=True)
    runs = {i: (config, losses) for i, config, losses in json.loads(done.stdout)}
    ids = [(tmp_path / name / "trackio" / "id").read_text().strip() for name in ("run", "another run")]
    assert set(runs) == set(ids)
    assert runs[ids[0]][1] == {str(step): 10 * step for step in range(1, 9)}
    assert runs[ids[1]][1] == {"1": 7, "2": 14}
    assert {k: v for k, v in runs[ids[0]][0].items() if not k.startswith("_")} == FACTS
