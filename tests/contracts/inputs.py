"""What the contract tests share: every registered part, a run of the tiny recipe that switches it on, and a stage in memory."""

import json
from functools import partial

import pytest

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


def settings_of(room, name, inputs):
    """Return what a part must be told because it reads something prepared."""
    needed = {("sources", "shards"): {"path": "shards"}, ("tokenizers", "file"): {"path": "tokenizer.json"}}
    return {k: str(inputs / v) for k, v in needed.get((room, name), {}).items()}


def build(room, name, inputs, *, shared=None, **settings):
    return rooms()[room].build({"kind": name, **settings_of(room, name, inputs), **settings}, shared=shared)


def variants():
    """Return (room, part) for everything that a recipe can switch on, number types included."""
    inside = {"optimizers", "schedules", *DATA_ROOMS, *IN_THE_FORWARD}
    return [(r, n) for r, n in PARTS if r in inside] + [("precision", n) for n in PRECISIONS if n != "auto"]


def plan_with(room, name, inputs, **more):
    """Return the plan of a run that switches a part on, and the stage that shows it: rows go to the first, all else to text."""
    paths = {
        "optimizers": "stages.text.optimizer",
        "schedules": "stages.text.schedule",
        "tokenizers": "streams.text.tokenizer",
        "packing": "streams.text.packing",
        "mixture": "streams.text.mixture",
        "models": "model",
    }
    spec, stage, sets = {"kind": name, **settings_of(room, name, inputs)}, "text", {}
    if room in paths:
        sets = {paths[room]: spec}
    elif room == "sources":
        own = {"nca": "soil", "text": "text"}  # the recipe's sources stay as they are
        if name not in own:
            documents = isinstance(build(room, name, inputs, shared={"seq_len": 32}), Corpus | Prepared)
            sets = {f"streams.{'text' if documents else 'soil'}.source": spec}
        stage = own.get(name) or next(iter(sets)).split(".")[1]
    elif room == "views":
        sets = {"streams.text.views": [*([] if name == "next_token" else [spec]), "next_token"]}
    else:
        sets = {"objectives": {"stages.text.objective": [spec]}, "layers": {"model.layers": {"linear": spec}}}.get(room, {})
    if room == "models":
        sets = {"model.kind": name}
    if name == "integers":
        sets |= {"streams.text.source.path": str(inputs / "numbers.jsonl"), "samples.prompts": ["1 2"]}
    precision = name if room == "precision" else None
    loaded = load(inputs / "tiny.yaml", sets={**sets, **more})
    plan = loaded.plan(arm="nca" if stage == "soil" else "scratch", seed=0, threads=1, precision=precision)
    return plan, next(spec for spec in plan.stages if spec.name == stage)


class Sitting:
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
        """Take over from a saved checkpoint and from what the other sitting's mixture was told."""
        state = load_checkpoint(folder, model=self.stage.system, optimizer=self.stage.optimizer)
        self.at = Counters(**state["counters"])
        self.built.stream.history[:] = other.built.stream.history
        return self
