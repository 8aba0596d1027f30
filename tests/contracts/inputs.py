"""What the contract tests share: every registered part, a run of the tiny recipe that switches it on, and a stage in memory."""

import json
from functools import cache, partial
from pathlib import Path

import pytest

from seedbed.core.config import read_yaml
from seedbed.core.errors import InterruptedRunError
from seedbed.core.ledger import Ledger
from seedbed.core.protocols import Corpus, Prepared
from seedbed.core.records import Measurement
from seedbed.engine.checkpoints import load_checkpoint, pack, write
from seedbed.engine.feed import Feed
from seedbed.engine.placement import place
from seedbed.engine.precision import PRECISIONS
from seedbed.engine.train import Counters, Hooks, train
from seedbed.experiments.assemble import build_model, build_stage, build_system, initialize, machine_for, rooms
from seedbed.experiments.plan.load import load
from seedbed.experiments.prepare.prepare import prepare
from seedbed.experiments.prepare.tokenizing import train as train_tokenizer
from seedbed.experiments.streams import build_stream, open_stream
from tests.conftest import write_corpus, write_recipe

EXAMPLES = Path(__file__).parents[1] / "parts"
PARTS = [(room, name) for room, registry in rooms().items() for name in registry]
DATA_ROOMS = ("sources", "tokenizers", "packing", "mixture", "views")
IN_THE_FORWARD = ("objectives", "layers", "models")


def of(room):
    return [name for r, name in PARTS if r == room]


def prepared_inputs(once):
    """Return the folder of what parts need that read something prepared: numbers.jsonl, shards, tokenizer.json; and the tiny
    recipe with its corpus."""

    def build(folder):
        lines = "".join(json.dumps({"text": [n % 7, 3, (5 * n) % 11, n % 3] * 30}) + "\n" for n in range(60))
        (folder / "numbers.jsonl").write_text(lines)
        sides = {"valid_share": 0.1, "test_share": 0.1, "duplicates": "keep"}
        prepare([folder / "numbers.jsonl"], folder / "shards", say=lambda x: None, **sides)
        texts = write_corpus(folder)
        train_tokenizer([texts], folder / "tokenizer.json", kind="bpe", vocab_size=300, special_tokens=["<|endoftext|>"])
        write_recipe(folder, texts)

    return once("contracts", build)


@cache
def _example(room, name):
    file = EXAMPLES / room / f"{name}.yaml"
    return read_yaml(file) if file.is_file() else {}


def example(room, name, inputs):
    """Return a part's example (see tests/parts), with the folder of inputs in it."""
    return json.loads(json.dumps(_example(room, name)).replace("INPUTS", str(inputs)))


def spec_of(room, name, inputs):
    return {"kind": name, **example(room, name, inputs).get("settings", {})}


def build(room, name, inputs, *, shared=None, **settings):
    return rooms()[room].build({**spec_of(room, name, inputs), **settings}, shared=shared)


# where a recipe names a part of a room; sources and views: see switched
PATHS = {
    "optimizers": "stages.text.optimizer",
    "schedules": "stages.text.schedule",
    "tokenizers": "streams.text.tokenizer",
    "packing": "streams.text.packing",
    "mixture": "streams.text.mixture",
    "models": "model",
    "layers": "model.layers.linear",
    "objectives": "stages.text.objective.0",
}
BASE = {"model.layers": {}, "stages.text.objective": [{"kind": "tokens"}]}  # so that there is something to put a part in


def variants():
    """Return (room, part) for everything that a recipe can switch on, number types included."""
    inside = {"optimizers", "schedules", *DATA_ROOMS, *IN_THE_FORWARD}
    return [(r, n) for r, n in PARTS if r in inside] + [("precision", n) for n in PRECISIONS if n != "auto"]


def switched(room, name, inputs):
    """Return the changes of the tiny recipe that switch a part on, and the stream that shows it."""
    spec, more, stream = spec_of(room, name, inputs), example(room, name, inputs).get("recipe", {}), "text"
    if room == "precision":
        return {"precision": name}, stream
    if room == "sources":
        documents = isinstance(build(room, name, inputs, shared={"seq_len": 32}), Corpus | Prepared)
        stream = "text" if documents else "soil"
        return {f"streams.{stream}.source": spec, **more}, stream
    if room == "views":  # one that asks nothing by itself stands in front of the recipe's own
        return {"streams.text.views": [spec] if build(room, name, inputs).asks_next else [spec, "next_token"], **more}, stream
    if room == "models":  # of the recipe's size
        return {"model.kind": name, **more}, stream
    return {PATHS[room]: spec, **more}, stream


def plan_of(sets, inputs, *, stream="text"):
    """Return the plan of the tiny recipe with changes, and the stage that reads a stream."""
    loaded = load(inputs / "tiny.yaml", sets={**BASE, **{k: v for k, v in sets.items() if k != "precision"}})
    arm = "nca" if stream == "soil" else "scratch"
    plan = loaded.plan(arm=arm, seed=0, threads=1, precision=sets.get("precision"))
    return plan, next(spec for spec in plan.stages if spec.stream == stream)


def plan_with(room, name, inputs, **more):
    """Return the plan of a run that switches a part on, and the stage that shows it."""
    sets, stream = switched(room, name, inputs)
    return plan_of({**sets, **more}, inputs, stream=stream)


def covering(inputs):
    """Return changes of the recipe that together switch on every part, each time one of every room whose changes don't meet."""
    left, found = variants(), []
    while left:
        sets, rooms_in = {}, set()
        for room, name in list(left):
            own, _ = switched(room, name, inputs)
            if room not in rooms_in and not any(_meet(a, b) for a in own for b in sets):
                sets |= own
                rooms_in.add(room)
                left.remove((room, name))
        found.append(sets)
    return found


def _meet(one, other):
    """Whether two paths are the same, or one lies below the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


class Session:
    """One stage of a plan, trained in memory by the run's own engine; stopped, it can be saved and gone on with."""

    def __init__(self, plan, spec):
        self.machine = machine_for(plan)
        self.built = build_stream(spec.stream, plan.streams[spec.stream])
        model = build_model(plan, spec, vocab_size=self.built.stream.vocab_size)
        initialize(model, spec, seed=plan.seed, old=None)
        system = build_system(plan, spec, model)
        place(system, self.machine)
        self.stage = build_stage(plan, spec, {spec.stream: self.built}, system)
        self.spec, self.seed = spec, plan.seed
        self.opener = partial(open_stream, spec.stream, plan.streams[spec.stream])
        self.at = Counters(positions={spec.stream: 0})
        self.lines = []

    @staticmethod
    def told(name, position, sources, step=0):
        """Return a measurement whose losses nothing but the position decides."""
        values = {source: 1.0 + 0.1 * number * (position % 7) for number, source in enumerate(sources)}
        return Measurement(step=step, position=position, name=name, values=values)

    def measure(self, name, position):
        stream = self.built.stream
        stream.history.append(self.told(name, position, stream.sources, self.at.run_step))

    def train(self, *, stop_after=None):
        hooks = Hooks(
            record=self.lines.append,
            evaluate=dict,
            save=lambda wait: None,
            should_stop=lambda: self.at.step == stop_after,
            measure=self.measure,
        )
        with Feed(self.built.stream, seed=self.seed) as feed:
            given = {
                "seed": self.seed,
                "machine": self.machine,
                "ledger": Ledger(),
                "hooks": hooks,
                "feeds": {self.spec.stream: feed},
            }
            if stop_after is None:
                train(self.stage, at=self.at, **given)
            else:
                with pytest.raises(InterruptedRunError):
                    train(self.stage, at=self.at, **given)
        return self

    @property
    def losses(self):
        return [line["loss_nats"] for line in self.lines]

    def packed(self):
        return pack(self.stage.system, self.stage.optimizer, {"counters": vars(self.at)})

    def saved(self, folder):
        write(folder, self.packed())
        return folder

    def going_on(self, other, folder):
        """Take over from a saved checkpoint and from what the other session's mixture was told."""
        state = load_checkpoint(folder, model=self.stage.system, optimizer=self.stage.optimizer)
        self.at = Counters(**state["counters"])
        self.built.stream.history[:] = other.built.stream.history
        return self
