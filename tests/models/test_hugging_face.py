import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from seedbed.core.errors import ConfigError, DataError, RefusedError
from seedbed.core.records import Batch, Role
from seedbed.models import hugging_face
from seedbed.models.decoder import Decoder
from seedbed.models.hugging_face import folder_fingerprint, folder_settings, folder_weights, llama_config, llama_weights

transformers = pytest.importorskip("transformers", minversion="5")  # whose configs hold `rope_parameters`

VOCAB = 37
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,  # logits of about 1, far from flat
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    "llama with wide heads, one key": ("Llama", {"head_dim": 14, "num_key_value_heads": 1}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, stretched": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0}}),
    "mistral": ("Mistral", {"sliding_window": 7, "tie_word_embeddings": True}),
    "mistral without a window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2 with a window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "qwen3": ("Qwen3", {"head_dim": 10}),
    "qwen3 tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3 with a window": (
        "Qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 1, "layer_types": ["sliding_attention"] * 2},
    ),
}


def _theirs(family="Llama", **changes):
    """A random model of transformers; gains and biases are random too, else a lost one would not show."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.copy_(1 + 0.3 * torch.randn_like(p))
    return model


def _saved(folder, family="Llama", *, max_shard_size="1GB", **changes):
    model = _theirs(family, **changes)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def _ours(folder):
    """The folder's model as a recipe gets it: `size: hf:FOLDER`, filled by role."""
    config = Decoder(**folder_settings(str(folder)))
    model = config.build(vocab_size=3)
    weights = folder_weights(str(folder))
    assert set(weights) == set(model.roles.values())
    with torch.no_grad():
        for name, p in model.named_parameters():
            assert weights[model.roles[name]].dtype == torch.float32
            p.copy_(weights[model.roles[name]])
    return model.eval()


def _rows(length=300):
    return torch.randint(0, VOCAB, (2, length), generator=torch.Generator().manual_seed(1))


def _same_logits(ours, theirs, rows=None):
    rows = _rows() if rows is None else rows
    with torch.no_grad():
        logits = theirs(rows).logits
        assert float(logits.std()) > 0.5, "flat logits would show nothing"
        torch.testing.assert_close(ours(Batch(tokens_BT=rows)).logits(), logits, atol=1e-5, rtol=0)


def _changed(folder, **changes):
    """Write a folder's config.json anew with other values; `...` takes a key out."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_has_its_own_logits_here(name, tmp_path):
    family, changes = FAMILIES[name]
    theirs = _saved(tmp_path, family, **changes)
    ours = _ours(tmp_path)
    _same_logits(ours, theirs)
    assert ours.vocab_size == VOCAB


@pytest.mark.parametrize("name", FAMILIES)
def test_our_decoder_opens_as_the_stock_class_and_comes_back_bit_for_bit(name, tmp_path):
    """Settings and weights written by us, opened by transformers without missing keys, read by us again."""
    family, changes = FAMILIES[name]
    _saved(tmp_path / "first", family, **changes)
    ours = _ours(tmp_path / "first")
    again = tmp_path / "again"
    again.mkdir()
    (again / "config.json").write_text(json.dumps(llama_config(ours.config, vocab_size=VOCAB)))
    save_file({n: t.contiguous() for n, t in llama_weights(ours).items()}, again / "model.safetensors", {"format": "pt"})
    theirs, found = transformers.AutoModelForCausalLM.from_pretrained(again, output_loading_info=True)
    assert not any(found[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _same_logits(ours, theirs.eval())
    back = _ours(again)
    assert torch.equal(back(Batch(tokens_BT=_rows())).logits(), ours(Batch(tokens_BT=_rows())).logits())


@pytest.mark.parametrize(
    ("settings", "family"),
    [
        ({}, "llama"),
        ({"attention_bias": True, "mlp_bias": True}, "llama"),
        ({"window": 4}, "mistral"),
        ({"num_heads": 3, "head_dim": 8}, "mistral"),
        ({"attention_bias": "qkv"}, "qwen2"),
        ({"attention_bias": "qkv", "window": 4, "head_dim": 6}, "qwen2"),
        ({"qk_norm": True, "attention_bias": True}, "qwen3"),
        ({"qk_norm": True, "window": 4, "num_heads": 3, "head_dim": 8}, "qwen3"),
    ],
    ids=str,
)
def test_the_first_class_that_has_everything_is_taken_and_opens(settings, family, tmp_path):
    config = Decoder(**{"num_layers": 2, "d_model": 16, "num_heads": 2, "init_std": 0.2, **settings})
    fields = llama_config(config.shape, vocab_size=VOCAB)
    assert fields["model_type"] == family
    model = config.build(vocab_size=VOCAB)
    model.initialize(seed=0)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.ndim == 1):
            p.normal_(1, 0.3, generator=torch.Generator().manual_seed(1))
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file({n: t.contiguous() for n, t in llama_weights(model).items()}, tmp_path / "model.safetensors", {"format": "pt"})
    theirs, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _same_logits(model.eval(), theirs.eval())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mask": "bidirectional"}, "a bidirectional mask"),
        ({"head_bias": True}, "a head bias"),
        ({"layers": {"mlp": {"kind": "default", "at": "mlp@0"}}}, "a layer of one's own for mlp"),
        ({"window": 4, "mlp_bias": True}, "biases in the MLP beside a window"),
        ({"window": 4, "attention_bias": True}, "biases of the attention beside a window"),
        ({"qk_norm": True, "attention_bias": "qkv"}, "keys and values only beside norms"),
        ({"attention_bias": "qkv", "mlp_bias": True}, "biases in the MLP beside biases of queries"),
    ],
    ids=str,
)
def test_what_no_stock_class_has_is_named(settings, said):
    config = Decoder(num_layers=1, d_model=16, num_heads=2, **settings)
    with pytest.raises(ConfigError, match=f"{said}.*opens with seedbed only"):
        llama_config(config.shape, vocab_size=3)


def test_a_sharded_folder_is_read_whole(tmp_path):
    theirs = _saved(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    _same_logits(_ours(tmp_path), theirs)


def test_half_precision_is_read_as_the_same_numbers(tmp_path):
    theirs = _theirs().to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    weights = folder_weights(str(tmp_path))
    key = weights[Role("attention", 1, "key")]
    assert key.dtype == torch.float32 and torch.equal(key.bfloat16(), theirs.model.layers[1].self_attn.k_proj.weight)


def test_a_folder_of_transformers_4_means_the_same(tmp_path):
    """`rope_theta` and `rope_scaling` beside each other, as before transformers 5; some wrote `type` for `rope_type`."""
    theirs = _saved(tmp_path, rope_parameters=LLAMA3)
    five = folder_settings(str(tmp_path))
    old = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    _changed(tmp_path, rope_parameters=..., rope_theta=500.0, rope_scaling=old, torch_dtype="float32", head_dim=...)
    assert folder_settings(str(tmp_path)) == five
    _changed(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    assert folder_settings(str(tmp_path))["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    _changed(tmp_path, rope_scaling=None)
    settings = folder_settings(str(tmp_path))
    assert settings["rope_scaling"] is None and settings["rope_base"] == 500.0
    assert theirs.config.rope_parameters["rope_theta"] == 500.0


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_what_a_config_does_not_say_is_as_in_the_stock_class(family, tmp_path):
    """A config.json with sizes only: what is silent here must be what transformers takes."""
    silent = {**SIZES, "hidden_size": 64, "num_attention_heads": 32}  # whatever is the default, the heads fit
    del silent["num_key_value_heads"]
    model_type = family.lower()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **silent}))
    settings = folder_settings(str(tmp_path))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert settings["num_kv_heads"] == theirs.num_key_value_heads
    assert settings["head_dim"] == getattr(theirs, "head_dim", 2)
    assert settings["norm_eps"] == theirs.rms_norm_eps
    assert settings["rope_base"] == theirs.rope_parameters["rope_theta"]
    assert settings["tied_embeddings"] == theirs.tie_word_embeddings
    assert settings["window"] == getattr(theirs, "sliding_window", None)
    _saved(tmp_path, family, **{k: v for k, v in silent.items() if k not in SIZES or SIZES[k] != v}, num_key_value_heads=2)
    _changed(tmp_path, num_key_value_heads=2)
    built = Decoder(**folder_settings(str(tmp_path))).build(vocab_size=1)
    assert {built.roles[n] for n, _ in built.named_parameters()} == set(folder_weights(str(tmp_path)))


@pytest.mark.parametrize(
    ("family", "changes", "error", "said"),
    [
        ("Llama", {"model_type": "gpt2"}, ConfigError, "'gpt2' is not known; known: llama, mistral, qwen2, qwen3"),
        ("Llama", {"model_type": "qwen3_moe"}, ConfigError, "did you mean 'qwen3'"),
        ("Llama", {"model_type": ...}, ConfigError, "None is not known"),
        ("Llama", {"hidden_act": "gelu"}, ConfigError, "hidden_act is 'gelu'"),
        ("Llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, ConfigError, "rope_type 'yarn'"),
        ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ConfigError, "rope_type 'dynamic'"),
        ("Llama", {"rope_parameters": {**LLAMA3, "attention_factor": 2.0}}, ConfigError, "attention_factor of a llama3 rope"),
        ("Llama", {"rope_parameters": {**LLAMA3, "factor": None}}, DataError, "needs numbers above 0 for factor"),
        ("Llama", {"rope_parameters": {"rope_theta": 0.0}}, DataError, "rope_theta is 0.0"),
        ("Llama", {"partial_rotary_factor": 0.5}, ConfigError, "partial_rotary_factor is 0.5"),
        ("Llama", {"final_logit_softcapping": 30.0}, ConfigError, "final_logit_softcapping: nothing is known"),
        ("Llama", {"sliding_window": 8}, ConfigError, "sliding_window: nothing is known here of a llama"),
        ("Llama", {"num_local_experts": 8}, ConfigError, "num_local_experts"),
        ("Llama", {"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, RefusedError, "auto_map.*stock class"),
        ("Llama", {"quantization_config": {"bits": 4}}, RefusedError, "quantization_config.*dequantize"),
        ("Llama", {"hidden_size": ...}, DataError, "hidden_size is missing; it must be a whole number"),
        ("Llama", {"num_hidden_layers": "2"}, DataError, "num_hidden_layers is '2'"),
        ("Llama", {"rms_norm_eps": None}, DataError, "rms_norm_eps is None"),
        ("Llama", {"rms_norm_eps": float("nan")}, DataError, "rms_norm_eps is nan"),
        ("Llama", {"tie_word_embeddings": 1}, DataError, "tie_word_embeddings is 1; it must be true or false"),
        ("Qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, None, None),  # no window at all: no matter
        (
            "Qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
            ConfigError,
            "1 of 2 layers have a window",
        ),
        (
            "Qwen3",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None},
            ConfigError,
            "1 of 2 layers have a window",
        ),
    ],
    ids=str,
)
def test_what_our_decoder_does_not_do_is_refused_by_name(family, changes, error, said, tmp_path):
    _saved(tmp_path, family)
    assert folder_settings(str(tmp_path))["window"] is None, "unchanged it opens"
    _changed(tmp_path, **changes)
    if error is None:
        assert folder_settings(str(tmp_path))["window"] is None
    else:
        with pytest.raises(error, match=said):
            folder_settings(str(tmp_path))


@pytest.mark.parametrize("raw", [b"{", b"[1]", b"[" * 100_000, b"\xff\xfe"], ids=["cut", "list", "deep", "not UTF-8"])
def test_a_broken_config_is_a_data_error(raw, tmp_path):
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(DataError, match="config.json"):
        folder_settings(str(tmp_path))


def test_no_folder_and_no_config_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="no model folder"):
        folder_settings(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="cannot read .*config.json"):
        folder_settings(str(tmp_path))


def _only_a_pickle(folder, name="pytorch_model.bin"):
    theirs = _saved(folder)
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / name)
    return theirs


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_a_pickle_is_refused_with_a_way_to_convert_it_that_works(name, tmp_path, monkeypatch):
    theirs = _only_a_pickle(tmp_path / "model", name)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("nothing is unpickled"))
    with pytest.raises(RefusedError, match=f"{name}.*a pickle can run code.*Convert it once") as refused:
        folder_weights(str(tmp_path / "model"))
    monkeypatch.undo()
    way = str(refused.value).partition("open it: ")[2]
    converted = tmp_path / "CONVERTED"
    exec(way.replace("'CONVERTED'", repr(str(converted))))
    _same_logits(_ours(converted if converted.is_dir() else tmp_path / "model"), theirs)


@pytest.mark.parametrize(("name", "way"), [("model.gguf", "gguf_file='model.gguf'"), ("tf_model.h5", "from_tf=True")])
def test_other_formats_are_refused_too(name, way, tmp_path):
    _saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(RefusedError, match=re.escape(way)):
        folder_weights(str(tmp_path))


def test_a_folder_without_weights_is_a_data_error(tmp_path):
    _saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "training_args.bin").write_bytes(b"no weights")
    with pytest.raises(DataError, match="neither model.safetensors nor"):
        folder_weights(str(tmp_path))


def test_a_pickle_beside_safetensors_is_not_looked_at(tmp_path):
    theirs = _saved(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    _same_logits(_ours(tmp_path), theirs)


def test_weights_that_do_not_fit_the_config_are_named(tmp_path):
    _saved(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    norm = "model.layers.1.input_layernorm.weight"
    save_file({k: v for k, v in whole.items() if k != norm}, file)
    with pytest.raises(DataError, match=f"it lacks {norm}; give"):
        folder_weights(str(tmp_path))
    save_file({**whole, "model.extra.weight": torch.ones(2)}, file)
    with pytest.raises(DataError, match="also holds model.extra.weight"):
        folder_weights(str(tmp_path))
    save_file({**whole, norm: torch.ones(31)}, file)
    with pytest.raises(DataError, match=r"input_layernorm.weight \(\(31,\), not \(32,\)\)"):
        folder_weights(str(tmp_path))
    save_file({**whole, norm: torch.ones(32, dtype=torch.int8)}, file)
    with pytest.raises(DataError, match=r"input_layernorm.weight is torch.int8"):
        folder_weights(str(tmp_path))
    save_file({**whole, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, file)
    assert torch.equal(folder_weights(str(tmp_path))[Role("norm", 1, "attention")], whole[norm]), "old Llamas carry a table"


def test_a_tied_head_may_be_stored_but_not_differ(tmp_path):
    _saved(tmp_path, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    save_file({**whole, "lm_head.weight": whole["model.embed_tokens.weight"].clone()}, file)
    assert Role("head") not in folder_weights(str(tmp_path))
    save_file({**whole, "lm_head.weight": whole["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(DataError, match="ties head and embedding, but lm_head.weight differs"):
        folder_weights(str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_file_is_found(share, tmp_path):
    _saved(tmp_path)
    file = tmp_path / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(DataError, match="model.safetensors is missing, cut or broken"):
        folder_weights(str(tmp_path))


def test_an_index_names_files_of_its_own_folder_only(tmp_path):
    _saved(tmp_path / "model", max_shard_size="10KB")
    outside = tmp_path / "outside.safetensors"
    shutil.copy(next((tmp_path / "model").glob("model-*.safetensors")), outside)
    index = tmp_path / "model" / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    for place in ("../outside.safetensors", str(outside), "sub/../../outside.safetensors", "model.bin"):
        index.write_text(json.dumps({"weight_map": {**whole["weight_map"], "lm_head.weight": place}}))
        with pytest.raises(DataError, match="in the folder itself"):
            folder_weights(str(tmp_path / "model"))
    for broken in ({}, {"weight_map": ["a"]}, {"weight_map": {}}):
        index.write_text(json.dumps(broken))
        with pytest.raises(DataError, match="no weight_map"):
            folder_weights(str(tmp_path / "model"))


def test_a_missing_shard_and_a_double_tensor_are_found(tmp_path):
    _saved(tmp_path, max_shard_size="10KB")
    first, second, *_ = sorted(tmp_path.glob("model-*.safetensors"))
    kept = second.read_bytes()
    shutil.copy(first, second)
    with pytest.raises(DataError, match=f"{second.name} and {first.name} both hold"):
        folder_weights(str(tmp_path))
    second.unlink()
    with pytest.raises(DataError, match=f"{second.name} is missing, cut or broken"):
        folder_weights(str(tmp_path))
    second.write_bytes(kept)
    assert folder_weights(str(tmp_path))


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    _saved(tmp_path / "one", max_shard_size="10KB")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = folder_fingerprint(str(tmp_path / "one"))
    assert first == folder_fingerprint(str(tmp_path / "two"))
    (tmp_path / "two" / "README.md").write_text("beside the weights")
    assert first == folder_fingerprint(str(tmp_path / "two"))
    shard = max((tmp_path / "two").glob("model-*.safetensors"))
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    flipped = folder_fingerprint(str(tmp_path / "two"))
    assert flipped != first
    shard.write_bytes(raw)
    assert first == folder_fingerprint(str(tmp_path / "two"))
    _changed(tmp_path / "two", rms_norm_eps=0.5)
    assert first != folder_fingerprint(str(tmp_path / "two"))
    shard.unlink()
    with pytest.raises(DataError, match=shard.name):
        folder_fingerprint(str(tmp_path / "two"))


def _in_the_cache(cache, folder, repo="someone/tiny"):
    """A model as the hub's client keeps it: a snapshot of links to blobs that lie outside the snapshot."""
    place = cache / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    for file in folder.iterdir():
        shutil.copy(file, place / "blobs" / file.name)
        (snapshot / file.name).symlink_to(place / "blobs" / file.name)


def test_a_model_of_the_hub_is_read_offline_if_it_was_downloaded_before(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    hugging_face._downloaded.cache_clear()
    with pytest.raises(DataError, match="hf download someone/tiny --local-dir DIR"):
        folder_settings("someone/tiny")
    theirs = _saved(tmp_path / "model")
    _in_the_cache(tmp_path / "cache", tmp_path / "model")
    _same_logits(_ours("someone/tiny"), theirs)
    with pytest.raises(DataError, match="someone/tiny"):
        folder_settings("someone/tiny@" + "b" * 40)
    hugging_face._downloaded.cache_clear()


def test_of_a_model_of_the_hub_only_json_and_safetensors_are_asked_for(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    _saved(tmp_path)
    asked = []

    def download(repo, *, revision, allow_patterns):
        asked.append((repo, revision))
        assert all(pattern.endswith((".json", ".safetensors")) for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    hugging_face._downloaded.cache_clear()
    folder_settings("someone/tiny@v1.0")
    folder_weights("someone/tiny@v1.0")
    assert asked == [("someone/tiny", "v1.0")], "once a process, so that settings and weights are of one revision"
    hugging_face._downloaded.cache_clear()
