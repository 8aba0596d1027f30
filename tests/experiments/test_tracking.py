"""Services follow a run and can't stop it; what they missed is sent afterwards. Stand-ins keep a diary of what is sent."""

import json

import pytest

from seedbed.core.errors import ConfigError, DataError, InterruptedRunError, RefusedError
from seedbed.core.registry import ALLOW_LOCAL_CODE
from seedbed.experiments.plan.load import load
from seedbed.experiments.run.tracking import Trackers, track

SERVICES = '''
"""Services that write what they are told into the run folder, and some that fail."""

import json
from dataclasses import dataclass

from seedbed.core.errors import InterruptedRunError


@dataclass(frozen=True, kw_only=True)
class Diary:
    held_step = 0
    where = "to diary.jsonl"

    def check(self):
        pass

    def open(self, *, folder, name, facts, from_step):
        object.__setattr__(self, "file", folder / f"{type(self).__name__}.jsonl")
        self.write({"name": name, "facts": facts, "from_step": from_step})
        return self

    def write(self, line):
        with self.file.open("a") as opened:
            opened.write(json.dumps(line) + "\\n")

    def record(self, line):
        self.write(line["run_step"])

    def close(self):
        self.write("closed")


class Remembers(Diary):
    held_step = 2


class Shut(Diary):
    def open(self, **_):
        raise OSError("no route to host, with key abcd-1234")


class Breaks(Diary):
    def record(self, line):
        super().record(line)
        if line["run_step"] == 3:
            raise ValueError("full")

    def close(self):
        super().close()
        raise ValueError("already gone")


class NeverEnds(Diary):
    def close(self):
        raise TimeoutError()


class Signal(Diary):
    def record(self, line):
        raise InterruptedRunError("a second signal")
'''


@pytest.fixture
def service(tmp_path, monkeypatch):
    """Name a stand-in as a part of one's own."""
    monkeypatch.setenv(ALLOW_LOCAL_CODE, "1")
    (tmp_path / "services.py").write_text(SERVICES)
    return lambda name: f"{tmp_path / 'services.py'}:{name}"


@pytest.fixture
def plan(recipe):
    return load(recipe).plan(arm="nca", seed=3)


@pytest.fixture
def folder(plan, tmp_path):
    """A run folder with the lines of five steps."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "resolved.yaml").write_text(plan.to_yaml())
    (out / "metrics.jsonl").write_text("".join(json.dumps(line(step)) + "\n" for step in range(1, 6)))
    return out


def line(step):
    return {"stage": "text", "step": step, "run_step": step, "loss_nats": float(step)}


def diary(folder, name="Diary"):
    return [json.loads(text) for text in (folder / f"{name}.jsonl").read_text().splitlines()]


def follow(names, folder, plan, *, from_step=0, steps=()):
    """What is said while services follow these steps."""
    said = []
    with Trackers(names, say=said.append) as trackers:
        trackers.open(folder, plan=plan, from_step=from_step)
        for step in steps:
            trackers.record(line(step))
    return said


def test_an_unknown_service_is_refused_with_the_nearest_known_one_before_anything_starts():
    with pytest.raises(ConfigError, match="no part 'tensorbord'; did you mean 'tensorboard'"):
        Trackers(["tensorbord"], say=print)


def test_without_names_nothing_happens(folder, plan):
    before = sorted(folder.rglob("*"))
    assert follow([], folder, plan, steps=[1]) == []
    assert sorted(folder.rglob("*")) == before


def test_every_line_is_sent_with_the_plan_first(folder, plan, service):
    name = service("Diary")
    assert follow([name, name], folder, plan, steps=[1, 2]) == [f"{name}: to diary.jsonl"]
    opened, *rest = diary(folder)
    assert rest == [1, 2, "closed"]
    assert (opened["name"], opened["from_step"]) == ("tiny-nca-seed-3", 0)
    assert opened["facts"]["seed"] == 3 and opened["facts"]["stages"][1]["weights"]["from"] == "soil"


def test_a_failing_service_is_said_once_and_dropped_while_the_others_go_on(folder, plan, service):
    said = follow([service("Breaks"), service("Diary")], folder, plan, steps=[1, 2, 3, 4])
    assert said[2:] == [
        f"{service('Breaks')}: ValueError: full; the run goes on, metrics.jsonl has every line; "
        f"`seedbed track {folder} --to {service('Breaks')}` sends them later"
    ]
    assert diary(folder, "Breaks")[1:] == [1, 2, 3, "closed"]
    assert diary(folder)[1:] == [1, 2, 3, 4, "closed"]


@pytest.mark.parametrize(("name", "reason"), [("Shut", "OSError: no route to host"), ("NeverEnds", "TimeoutError; the run")])
def test_a_service_that_does_not_open_or_close_stops_nothing(name, reason, folder, plan, service):
    said = follow([service(name)], folder, plan, steps=[1])
    assert reason in said[-1] and "the run goes on" in said[-1]
    assert sum("the run goes on" in text for text in said) == 1


def test_a_second_signal_still_stops_the_run_at_once(folder, plan, service):
    with pytest.raises(InterruptedRunError, match="a second signal"):
        follow([service("Signal")], folder, plan, steps=[1])


def test_a_run_that_goes_on_brings_a_service_to_its_checkpoint_first(folder, plan, service):
    follow([service("Diary"), service("Remembers")], folder, plan, from_step=4, steps=[5, 6])
    assert diary(folder)[1:] == [1, 2, 3, 4, 5, 6, "closed"], "line 5 of the killed session is not sent"
    assert diary(folder, "Remembers")[1:] == [3, 4, 5, 6, "closed"], "what it holds is not sent again"


def test_lines_that_a_service_holds_from_behind_the_checkpoint_are_not_sent_again(folder, plan, service):
    follow([service("Remembers")], folder, plan, from_step=1, steps=[2, 3])
    assert diary(folder, "Remembers")[1:] == [3, "closed"]


def test_secrets_and_the_home_folder_are_handed_to_nobody(folder, plan, service, monkeypatch, tmp_path):
    monkeypatch.setenv("SERVICE_API_KEY", "abcd-1234")
    monkeypatch.setenv("HOME", str(tmp_path))
    said = follow([service("Shut")], folder, plan.model_copy(update={"title": "to https://x.org/?write_token=q1w2&a=b"}))
    assert "with key $SERVICE_API_KEY;" in said[0] and "abcd-1234" not in said[0]
    titled = plan.model_copy(update={"title": "abcd-1234 at https://x.org/?write_token=q1w2&a=b"})
    follow([service("Diary")], folder, titled)
    facts = diary(folder)[0]["facts"]
    assert facts["title"] == "$SERVICE_API_KEY at https://x.org/?write_token=...&a=b"
    assert facts["streams"]["text"]["source"]["path"] == "~/corpus.txt"


def test_a_finished_run_is_sent_whole(folder, service):
    said = []
    assert track(folder, [service("Diary")], said.append) == 5
    assert said == [f"{service('Diary')}: 5 lines, to diary.jsonl"]
    assert diary(folder)[1:] == [1, 2, 3, 4, 5, "closed"]


def test_of_a_running_run_the_half_written_line_is_left_out(folder, service):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"run_step": 6, "loss_na')
    assert track(folder, [service("Diary")], lambda text: None) == 5


def test_two_processes_never_send_the_same_run_to_one_service(folder, plan, service):
    with Trackers([service("Diary")], say=lambda text: None) as trackers:
        trackers.open(folder, plan=plan, from_step=0)
        with pytest.raises(RefusedError, match="is being written by process"):
            track(folder, [service("Diary")], lambda text: None)
        trackers.record(line(1))
    assert diary(folder)[1:] == [1, "closed"]
    assert track(folder, [service("Diary")], lambda text: None) == 5


def test_sending_afterwards_says_what_failed(folder, service):
    with pytest.raises(DataError, match="ValueError: full; metrics.jsonl has every line"):
        track(folder, [service("Breaks")])
    assert diary(folder, "Breaks")[-1] == "closed"
    with pytest.raises(DataError, match="resolved.yaml"):
        track(folder.parent, [service("Diary")])
    (folder / "metrics.jsonl").write_text("{}x\n")
    with pytest.raises(DataError, match="metrics.jsonl is broken at line 1"):
        track(folder, [service("Diary")])
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match="let the run take a step first"):
        track(folder, [service("Diary")])


def test_sending_twice_leaves_every_point_once(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="seedbed[track]")
    for _ in range(2):
        assert track(folder, ["tensorboard"], lambda text: None) == 5
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss_nats")] == [(step, float(step)) for step in range(1, 6)]
