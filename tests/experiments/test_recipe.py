import json

import pytest

from seedbed.core.config import dump_yaml, parse_yaml
from seedbed.core.errors import ConfigError, DataError
from seedbed.experiments.plan.arms import parse_seeds
from seedbed.experiments.plan.load import load, shipped
from seedbed.experiments.plan.run_plan import RunPlan


def _changed(recipe, **changes):
    text = recipe.read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    recipe.write_text(text)
    return recipe


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_valid_at_every_scale(name):
    loaded = load(name)
    for scale in [None, *loaded.recipe.scales]:
        at_scale = load(name, scale=scale)
        assert [at_scale.plan(arm=arm, seed=0).arm for arm in at_scale.arms] == at_scale.arms


def test_leaving_a_stage_out_leaves_its_control(recipe):
    loaded = load(recipe)
    scratch, nca = (loaded.plan(arm=a, seed=0) for a in ("scratch", "nca"))
    assert [s.name for s in scratch.stages] == ["text"] and scratch.stages[0].weights is None
    assert [s.name for s in nca.stages] == ["soil", "text"] and nca.stages[1].weights.from_ == "soil"
    assert scratch.stages[0].model_dump(exclude={"weights"}) == nca.stages[1].model_dump(exclude={"weights"})


def test_a_left_out_stage_hands_its_budget_and_its_origin_on(recipe):
    _changed(recipe, a=("arms: {nca: {}}", "arms: {nca: {}, extra: {without: soil, give_budget_to: text}}"))
    assert load(recipe).plan(arm="extra", seed=0).stages[0].budget.steps == 14
    three = recipe.read_text().replace(
        "  - name: text\n",
        "  - {name: middle, stream: soil, budget: {steps: 1}, weights: {from: soil, fresh: []}}\n  - name: text\n",
    )
    recipe.write_text(
        three.replace("weights: {from: soil}\n", "weights: {from: middle}\n").replace("without: soil}}", "without: middle}}")
    )
    assert load(recipe).plan(arm="scratch", seed=0).stages[1].weights.from_ == "soil"


def test_arms_differ_in_their_named_change_only(recipe):
    _changed(recipe, a=("arms: {nca: {}}", "arms: {nca: {}, shuffled: {streams.soil.views: [shuffled, next_token]}}"))
    loaded = load(recipe)
    nca, shuffled = (loaded.plan(arm=a, seed=3).model_dump() for a in ("nca", "shuffled"))
    assert shuffled["streams"]["soil"].pop("views") != nca["streams"]["soil"].pop("views")
    assert nca.pop("arm") != shuffled.pop("arm")
    assert nca == shuffled


def test_tuned_settings_reach_their_arm_and_the_user_wins(recipe):
    _changed(recipe, a=("  seeds: 0-1", "  tuned: {nca: {stages.text.clip_norm: 0.5}}\n  seeds: 0-1"))
    assert [load(recipe).plan(arm=a, seed=0).stages[-1].clip_norm for a in ("scratch", "nca")] == [1.0, 0.5]
    mine = load(recipe, sets={"stages.text.clip_norm": 2.0})
    assert [mine.plan(arm=a, seed=0).stages[-1].clip_norm for a in ("scratch", "nca")] == [2.0, 2.0]


def test_what_the_user_sets_comes_before_an_arm_s_change(recipe):
    _changed(recipe, a=("arms: {nca: {}}", "arms: {nca: {}, extra: {without: soil, give_budget_to: text}}"))
    mine = load(recipe, sets={"stages.text.budget": {"steps": 4}, "stages.0.budget": {"steps": 3}})
    assert mine.plan(arm="extra", seed=0).stages[0].budget.steps == 4 + 3
    assert mine.plan(arm="scratch", seed=0).stages[0].budget.steps == 4
    assert [s.budget.steps for s in mine.plan(arm="nca", seed=0).stages] == [3, 4]


def test_budgets_in_steps_of_other_sizes_are_not_added(recipe):
    _changed(
        recipe,
        a=("arms: {nca: {}}", "arms: {nca: {}, extra: {without: soil, give_budget_to: text}}"),
        b=("    seq_len: 32\n    batch_size: 4\n  text:", "    seq_len: 32\n    batch_size: 2\n  text:"),
    )
    with pytest.raises(ConfigError, match="give both budgets in tokens"):
        load(recipe)


def test_a_corpus_for_a_recipe_without_text_is_refused(recipe):
    text = recipe.read_text().split("study:")[0]
    text = text[: text.index("  text:\n")] + text[text.index("stages:") : text.index("  - name: text")]
    recipe.write_text(text)
    with pytest.raises(ConfigError, match="needs a recipe with a text source"):
        load(recipe, corpus="mine.txt")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stages.text.frozen", ["attention.valu"], "'attention.valu' addresses no parameter of this model; roles: attention"),
        ("stages.text.frozen", ["mlp@9"], "addresses no parameter"),
        ("stages.text.weights.fresh", ["embeding"], "no role is called 'embeding'"),
        ("stages.text.clip_norm", -1, "greater than 0"),
        ("stages.text.embedding_std", -2, "greater than 0"),
        ("streams.text.seq_len", True, "valid integer"),
        ("stages.text.budget.steps", float("inf"), "not a count|holds a value"),
        ("streams.soil.source.kind", 3, "needs `kind`"),
        ("model.mask", "bidirectional", "the answer stands in its sight"),
    ],
)
def test_settings_that_would_fail_or_mislead_later_are_refused_at_once(recipe, path, value, message):
    from seedbed.experiments.assemble import check_parts

    with pytest.raises(ConfigError, match=message):
        check_parts(load(recipe, sets={path: value}).plan(arm="nca", seed=0))


def test_a_misspelled_arm_under_tuned_is_refused(recipe):
    _changed(recipe, a=("  seeds: 0-1", "  tuned: {ncaa: {stages.text.clip_norm: 0.5}}\n  seeds: 0-1"))
    with pytest.raises(ConfigError, match="study.tuned: no arm 'ncaa'; did you mean 'nca'"):
        load(recipe)


def test_the_user_s_corpus_replaces_every_text_source_and_stands_whole_in_the_plan(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = load(recipe, corpus="mine.txt").plan(arm="nca", seed=0)
    assert plan.streams["text"].source["path"] == str(tmp_path / "mine.txt")


def test_a_plan_survives_its_own_yaml_with_the_same_fingerprint(recipe):
    plan = load(recipe).plan(arm="nca", seed=1)
    again = RunPlan.model_validate(parse_yaml(plan.to_yaml(), name="x"), strict=False)
    assert again == plan and again.fingerprint() == plan.fingerprint()
    assert plan.fingerprint() != load(recipe).plan(arm="nca", seed=2).fingerprint()
    assert plan.fingerprint() == load(recipe).plan(arm="nca", seed=1, threads=2).fingerprint(), "where is not what"


def test_recipes_extend_recipes(recipe, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("extends: tiny.yaml\nname: child\nstudy: {seeds: 0-4}\nstages.text.budget: {steps: 3}\n")
    loaded = load(child)
    assert (loaded.recipe.name, loaded.seeds, loaded.recipe.stages[1].budget.steps) == ("child", [0, 1, 2, 3, 4], 3)
    recipe.write_text("extends: child.yaml\n" + recipe.read_text())
    with pytest.raises(ConfigError, match="extends itself"):
        load(child)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seq_len: 32", "seq_length: 32", "streams.soil.seq_length: unknown key; did you mean 'seq_len'"),
        ("stream: soil", "stream: sol", "stages.soil.stream: no stream 'sol'; did you mean 'soil'"),
        ("{from: soil}", "{from: sol}", "no earlier stage 'sol'; did you mean 'soil'"),
        ("{steps: 6}", "{steps: 6, tokens: 3}", "stages.0.budget: .*one currency"),
        ("{steps: 6}", "{tokens: 1.5}", "stages.0.budget.tokens.*not a whole count"),
        ("batch_size: 4", "batch_size: 0", "streams.soil.batch_size: .*greater than or equal to 1"),
        ("without: soil", "without: sool", "study.arms.scratch.without: no stage 'sool'; did you mean 'soil'"),
        ("metric", "metrik", None),
        ("seeds: 0-1", "seeds: 1-0", "seeds"),
        ("name: tiny", "name: Tiny Recipe", "name: String should match"),
        ("embedding_std: 0.02", "embedding_std: wide", "embedding_std"),
        ("published_nats: 0.06", "contrasts: [[nca]]", "study.contrasts"),
    ],
)
def test_wrong_recipes_are_refused_with_their_path(recipe, old, new, message):
    if message is None:
        old, new, message = "  seeds: 0-1", "  metrik: x\n  seeds: 0-1", "study.metrik: unknown key; did you mean 'metric'"
    _changed(recipe, a=(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        loaded = load(recipe)
        assert loaded.seeds
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_recipes_name_what_there_is(tmp_path):
    with pytest.raises(ConfigError, match="no recipe 'nca-txt'; did you mean 'nca-text'"):
        load("nca-txt")
    with pytest.raises(DataError, match="there is no recipe file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="no scale 'smok'; did you mean 'smoke'"):
        load("nca-text", scale="smok")


def test_seeds_are_read_in_both_spellings():
    assert parse_seeds("0-2") == [0, 1, 2] and parse_seeds("0,5,7-8") == [0, 5, 7, 8] and parse_seeds([3]) == [3]
    for wrong in ("a", "2-1", "0,0", [-1]):
        with pytest.raises(ConfigError):
            parse_seeds(wrong)


def test_resolved_yaml_holds_every_setting_of_every_part(recipe):
    plan = load(recipe).plan(arm="nca", seed=0)
    assert plan.stages[1].optimizer["learning_rate"] == 1e-3 and plan.stages[1].optimizer["kind"] == "adamw"
    assert plan.streams["soil"].source["burn_in"] == 10 and "seq_len" not in plan.streams["soil"].source, "the stream's holds"
    assert plan.evaluate["text"].part["stride"] is None and plan.model["tied_embeddings"] is False
    assert load(recipe).plan(arm="nca", seed=0) == plan


@pytest.mark.parametrize(
    "sets",
    [
        {"streams.soil.source.burn_in": 10},
        {"stages.text.optimizer": {"kind": "adamw", "weight_decay": 0.0}},
        {"model.tied_embeddings": False},
        {"evaluate.text.stride": None},
        {"evaluate.text.watch": True},
        {"streams.text.packing": {"kind": "concatenate"}},
        {"stages.text.clip_norm": 1.0},
        {"stages.text.weights.fresh": ["embedding", "head"]},
    ],
    ids=lambda sets: next(iter(sets)),
)
def test_a_setting_at_its_default_leaves_the_hash_as_it_is(recipe, sets):
    assert load(recipe, sets=sets).plan(arm="nca", seed=0).fingerprint() == load(recipe).plan(arm="nca", seed=0).fingerprint()


@pytest.mark.parametrize(
    "sets",
    [
        {"streams.soil.source.burn_in": 11},
        {"streams.soil.source.seq_len": 1024},  # the source's default, and not its stream's row
        {"stages.text.optimizer": {"kind": "adamw", "weight_decay": 0.1}},
        {"stages.text.model": {"tied_embeddings": False}},  # a change of the model, whatever it was
        {"evaluate.text.valid_bytes": 999},
        {"evaluate.text.bar": {"loss_nats": 2.0}},
        {"evaluate.rules.rows": 128},
        {"samples.prompts": []},
        {"test": False},
    ],
    ids=lambda sets: next(iter(sets)),
)
def test_any_other_setting_has_a_hash_of_its_own(recipe, sets):
    one, other = (load(recipe, sets=some).plan(arm="nca", seed=0).fingerprint() for some in ({}, sets))
    assert one != other


def test_a_default_that_moves_moves_the_hash_of_who_relied_on_it(recipe, monkeypatch):
    """Both of them: who left it out, and who had written down what it used to be."""
    from seedbed.core.registry import Registry

    plan = load(recipe).plan(arm="nca", seed=0)
    before, real = plan.fingerprint(), Registry.defaults
    moved = {"burn_in": 11}
    monkeypatch.setattr(Registry, "defaults", lambda room, kind: real(room, kind) | (moved if kind == "nca" else {}))
    assert plan.fingerprint() != before, "its resolved.yaml says what it was computed with"


def test_sizes_that_a_model_folder_gives_stand_in_the_plan(recipe, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 257}
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    plan = load(recipe, sets={"model": {"kind": "decoder", "size": f"hf:{tmp_path / 'llama'}"}}).plan(arm="nca", seed=0)
    (tmp_path / "llama/config.json").unlink()
    assert plan.model["size"] is None and plan.model["num_layers"] == 3
    assert RunPlan.model_validate(parse_yaml(plan.to_yaml(), name="x")).fingerprint() == plan.fingerprint()


OLD = """
evaluate:
  main: prose
  sets: {prose: {kind: text, path: p.txt}, code: {kind: text, path: c.txt}}
  valid_bytes: 2k
  samples: ["a"]
"""


def test_a_recipe_of_the_first_form_is_refused_with_the_new_lines(recipe):
    text = recipe.read_text()
    start, end = text.index("evaluate:"), text.index("checkpoint_every")
    old = text[:start] + OLD.lstrip() + text[end:].replace("seeds: 0-1", "seeds: 0-1\n  metric: test_bits_per_byte")
    recipe.write_text(old.replace("share: 1.0}}", "share: 1.0}, floor_rows: 4}"))
    with pytest.raises(ConfigError, match=r"evaluate.main, .*stages.soil.floor_rows, study.metric: test_bits_per_byte: ") as e:
        load(recipe)
    lines = parse_yaml(str(e.value).partition("write:\n")[2], name="x")
    prose = {"kind": "bits_per_byte", "over": {"kind": "text", "path": "p.txt"}, "valid_bytes": "2k"}
    assert lines["evaluate"]["prose"] == prose and set(lines["evaluate"]) == {"prose", "code", "rules"}
    assert lines["evaluate"]["rules"] == {"kind": "rule_inference", "stage": "soil", "rows": 4}
    assert lines["samples"] == {"prompts": ["a"]} and lines["study"] == {"metric": "prose.bits_per_byte"}
    written = text[:start] + "checkpoint_every" + text[end:].partition("checkpoint_every")[2]
    study = lines.pop("study")
    recipe.write_text(written.replace("seeds: 0-1", f"seeds: 0-1\n  metric: {study['metric']}") + dump_yaml(lines))
    assert list(load(recipe).plan(arm="nca", seed=0).evaluate) == ["prose", "code", "rules"], (
        "they can be written as they stand"
    )


def test_the_metric_of_the_first_form_alone_is_refused_too(recipe):
    with pytest.raises(ConfigError, match="metric: text.loss_nats"):
        load(recipe, sets={"study.metric": "test_loss_nats"})


def test_an_evaluation_may_have_a_name_of_the_first_form(recipe):
    assert list(load(recipe, sets={"evaluate": {"test": "bits_per_byte"}}).plan(arm="scratch", seed=0).evaluate) == ["test"]


@pytest.mark.parametrize("change", [{"wihtout": "soil"}, {"chagne": 3}, {"change": {"stages.text.budget.steps": 9}}])
def test_a_misspelt_change_of_an_arm_is_no_control_twice(recipe, change):
    sets = {"study.arms": {"nca": change}}
    with pytest.raises(ConfigError, match=r"study.arms.nca.\w+: no such change; (did you mean 'without'|.*a.b.c)"):
        load(recipe, sets=sets)
