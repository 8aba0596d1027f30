"""A new stage is no resume: what it takes over, from where, and what begins anew."""

import json

import pytest
import torch

from seedbed.core.errors import ConfigError, DataError, RefusedError
from seedbed.engine.checkpoints import load_moments, load_weights, read_state
from seedbed.experiments import commands
from seedbed.experiments.plan.load import load
from tests.experiments.test_run import _metrics, _run

CONTINUED = """
name: continued
model: {kind: decoder, num_layers: 2, d_model: 32, num_heads: 2}
streams:
  text:
    source: {kind: text, path: "CORPUS", section_bytes: 400, valid_share: 0.1, test_share: 0.1}
    tokenizer: bytes
    seq_len: 32
    batch_size: 4
stages:
  - {name: first, stream: text, budget: {steps: 6}, schedule: {kind: warmup, share: 0.0}, evaluations: 1}
  - name: second
    stream: text
    budget: {steps: 5}
    schedule: {kind: warmup, share: 0.0}
    evaluations: 1
    weights: {from: first, fresh: []}
    carry: [weights, moments, clock]
evaluate: {text: {kind: bits_per_byte, valid_bytes: 1k}}
"""


@pytest.fixture
def continued(tmp_path, corpus):
    file = tmp_path / "continued.yaml"
    file.write_text(CONTINUED.replace("CORPUS", str(corpus)))
    return file


def _losses(folder):
    return [line["loss_nats"] for line in _metrics(folder)]


def _one_stage(continued, tmp_path):
    sets = {
        "stages": [{"name": "first", "stream": "text", "budget": {"steps": 11}, "schedule": {"kind": "warmup", "share": 0.0}}]
    }
    return commands.run(continued, out=tmp_path / "undivided", sets=sets, threads=1, say=lambda x: None).folder


def test_with_weights_moments_and_clock_two_stages_are_one_undivided(continued, tmp_path):
    said = []
    folder = commands.run(continued, out=tmp_path / "two", threads=1, say=said.append).folder
    one = _one_stage(continued, tmp_path)
    assert _losses(folder) == _losses(one)
    weights = [load_weights(f / "checkpoints/final") for f in (folder, one)]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[1])
    line = next(x for x in said if "takes over" in x)
    assert line.startswith("stage second takes over from first: weights (21 keep); moments of 21 parameters; ")
    assert line.endswith("the schedule continues at step 6 of 11")
    final = json.loads((folder / "final.json").read_text())
    assert final["givers"]["second"]["carry"] == ["weights", "moments", "clock"]


@pytest.mark.parametrize(
    ("carry", "same_loss", "said"),
    [
        (["weights"], True, "weights (21 keep); moments begin at zero; the schedule begins anew"),
        (["weights", "moments"], True, "weights (21 keep); moments of 21 parameters; the schedule begins anew"),
        (
            ["moments", "clock"],
            False,
            "no weights (drawn anew); moments of 21 parameters; the schedule continues at step 6 of 11",
        ),
    ],
)
def test_what_is_not_carried_begins_anew(continued, tmp_path, carry, same_loss, said):
    lines = []
    sets = {"stages.second.carry": carry}
    folder = commands.run(continued, out=tmp_path / "two", sets=sets, threads=1, say=lines.append).folder
    one = _one_stage(continued, tmp_path)
    assert (_losses(folder)[6] == _losses(one)[6]) is same_loss, "the seventh loss is seen before the seventh step is made"
    assert (_losses(folder)[7] == _losses(one)[7]) is ("moments" in carry and same_loss)
    assert any(line.endswith(said) for line in lines)
    transfer = json.loads((folder / "final.json").read_text())["transfer"]["second"]
    assert set(transfer.values()) == {"keep" if "weights" in carry else "fresh"}


def test_moments_cross_for_what_is_kept_and_trained_only(continued, tmp_path):
    sets = {
        "stages.second.weights": {"from": "first", "fresh": ["embedding", "head"]},
        "stages.second.frozen": ["norm"],
        "stages.second.optimizer": {"kind": "adamw", "learning_rate": 1e-9, "betas": [0.0, 0.0]},
    }
    folder = commands.run(continued, out=tmp_path / "two", sets=sets, threads=1, say=lambda x: None).folder
    moments = load_moments(folder / "checkpoints/final")
    steps = {name: float(values["step"]) for name, values in moments.items()}
    assert {steps[n] for n in steps if "embedding" in n or "head" in n} == {5.0}, "fresh: from zero"
    assert {steps[n] for n in steps if "mlp" in n and "norm" not in n} == {11.0}, "kept: counted on"
    assert not any("norm" in n for n in steps), "frozen: none"


def test_the_clock_moves_the_schedule_on(continued, tmp_path):
    sets = {f"stages.{s}.schedule": {"kind": "cosine", "warmup": 0.0, "floor": 0.0} for s in ("first", "second")}
    folder = commands.run(continued, out=tmp_path / "on", sets=sets, threads=1, say=lambda x: None).folder
    anew = {**sets, "stages.second.carry": ["weights"]}
    other = commands.run(continued, out=tmp_path / "anew", sets=anew, threads=1, say=lambda x: None).folder
    rates = [[line["learning_rate"] for line in _metrics(f) if line["stage"] == "second"] for f in (folder, other)]
    undivided = load(continued).plan(arm="run", seed=0)
    assert undivided.stages[1].budget.steps == 5
    from seedbed.core.records import Progress
    from seedbed.schedules.cosine import Cosine

    cosine = Cosine(warmup=0.0, floor=0.0)
    assert rates[0] == [1e-3 * cosine(Progress(step=6 + n, steps=11)) for n in range(5)]
    assert rates[1] == [1e-3 * cosine(Progress(step=n, steps=5)) for n in range(5)], "re-warmed"


def test_a_stage_goes_on_with_another_run_s_weights_and_moments(recipe, tmp_path):
    base = _run(recipe, tmp_path / "base-0", arm="scratch").folder
    sets = {
        "stages.text.weights": {"from": f"run:{tmp_path}/base-{{seed}}", "fresh": []},
        "stages.text.carry": ["weights", "moments", "clock"],
    }
    said = []
    text = recipe.read_text().replace("change: {without: soil}", "change: {}")
    recipe.write_text(text)
    found = commands.run(recipe, out=tmp_path / "more", arm="scratch", sets=sets, threads=1, say=said.append)
    assert any("the schedule continues at step 8 of 16" in line for line in said)
    giver = found.final["givers"]["text"]
    state = read_state(base / "checkpoints/final")
    assert giver["from"] == f"run:{tmp_path}/base-0" and giver["sha256"] == state["sha256"]["model.safetensors"]
    first = next(x for x in _metrics(tmp_path / "more") if x["stage"] == "text")
    assert first["loss_nats"] < _metrics(base)[0]["loss_nats"] - 0.3, "it begins where the other run ended"


@pytest.fixture
def folder_of_llama(tmp_path):
    """A Llama of the recipe's sizes but for a head width and a vocabulary of its own, as save_pretrained writes it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_stage_begins_with_the_weights_of_a_model_folder(continued, tmp_path, folder_of_llama):
    """Its sizes and its larger vocabulary are the recipe's too; the first loss is that of its own logits."""
    sets = {
        "model": {"kind": "decoder", "size": f"hf:{folder_of_llama}"},
        "stages": [
            {
                "name": "text",
                "stream": "text",
                "budget": {"steps": 2},
                "weights": {"from": f"hf:{folder_of_llama}", "fresh": []},
            }
        ],
    }
    said = []
    found = commands.run(continued, out=tmp_path / "run", sets=sets, threads=1, precision="float32", say=said.append)
    assert any(f"takes over from hf:{folder_of_llama}: weights (20 keep)" in line for line in said)
    assert len(found.final["givers"]["text"]["sha256"]) == 16

    from transformers import AutoModelForCausalLM

    from seedbed.experiments.streams import build_stream

    theirs = AutoModelForCausalLM.from_pretrained(folder_of_llama).eval()
    plan = load(continued, sets=sets).plan(arm="run", seed=0)
    rows = build_stream("text", plan.streams["text"]).stream.rows(0, count=4, seed=0)
    tokens, targets = (torch.tensor([getattr(r, n).tolist() for r in rows]) for n in ("tokens_T", "targets_T"))
    weights = torch.tensor([r.weights_T.tolist() for r in rows])
    with torch.no_grad():
        logits = theirs(tokens).logits
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    wanted = float((nll * weights.flatten()).sum() / weights.sum())
    assert _losses(tmp_path / "run")[0] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.usefixtures("runs_here")
@pytest.mark.usefixtures("runs_here")
def test_a_giver_of_several_runs_is_named_and_must_stay_the_same(recipe, tmp_path):
    from seedbed.experiments.study.comparison import compared
    from seedbed.experiments.study.study import compare

    _run(recipe, tmp_path / "base", arm="scratch")
    recipe.write_text(
        recipe.read_text().replace(
            "arms: {nca: {}}", f"arms: {{taken: {{stages.soil.weights: {{from: 'run:{tmp_path}/base'}}}}}}"
        )
    )
    recipe.write_text(recipe.read_text().replace("    nca: {stages", "    taken: {stages"))
    few = {"stages.soil.budget.steps": 2, "stages.text.budget.steps": 2}
    found = compare(recipe, out=tmp_path / "study", jobs=2, threads=1, sets=few)
    assert f"one giver for several runs (run:{tmp_path}/base), whose own draw is in no interval" in found.data["paired"]
    final = tmp_path / "study/taken/seed-1/final.json"
    content = json.loads(final.read_text())
    content["givers"]["soil"]["sha256"] = "0" * 64
    final.write_text(json.dumps(content))
    with pytest.raises(RefusedError, match="gave other weights to some runs"):
        compared(tmp_path / "study")


def test_what_cannot_be_taken_over_is_refused_before_anything_is_trained(recipe, tmp_path):
    cases = [
        ({"stages.text.weights": {"from": "run:nowhere"}}, DataError, "nowhere is not a run folder"),
        ({"stages.text.weights": {"from": f"hf:{tmp_path}/nowhere"}}, DataError, "nowhere"),
        ({"stages.text.weights": {"from": "sand"}}, ConfigError, "no earlier stage 'sand'.*run:FOLDER, hf:FOLDER"),
        ({"stages.soil.carry": ["weights", "moments"]}, ConfigError, "nothing arrives without"),
        ({"stages.text.carry": []}, ConfigError, "one at least"),
        ({"stages.text.carry": ["weights", "weights"]}, ConfigError, "once at most"),
        ({"stages.text.weights": {"from": "hf:x"}, "stages.text.carry": ["weights", "clock"]}, ConfigError, "no moments"),
    ]
    for sets, error, message in cases:
        with pytest.raises(error, match=message):
            _run(recipe, tmp_path / "run", sets=sets)
    assert not (tmp_path / "run").exists()
