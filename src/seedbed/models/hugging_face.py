"""Model folders of Hugging Face's Llama family (Llama, Mistral, Qwen2, Qwen3), to our settings and roles and back.

Read are config.json and safetensors, from a folder or the hub. Nothing is unpickled and no code of a folder is run; what a
config.json asks for and our decoder does not do is refused by name, so that a folder that opens has its own logits here too.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import file_digest, sha256
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seedbed.core.errors import ConfigError, DataError, RefusedError, nearest
from seedbed.core.json_files import read_object
from seedbed.core.records import Role
from seedbed.models.shape import Shape
from seedbed.models.transformer import Transformer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_READ = (CONFIG, WEIGHTS, INDEX, "model-*.safetensors")  # of a model on the hub

_TENSORS = {
    ("attention", "query"): "self_attn.q_proj",
    ("attention", "key"): "self_attn.k_proj",
    ("attention", "value"): "self_attn.v_proj",
    ("attention", "out"): "self_attn.o_proj",
    ("mlp", "gate"): "mlp.gate_proj",
    ("mlp", "up"): "mlp.up_proj",
    ("mlp", "down"): "mlp.down_proj",
    ("norm", "attention"): "input_layernorm",
    ("norm", "mlp"): "post_attention_layernorm",
    ("norm", "query"): "self_attn.q_norm",
    ("norm", "key"): "self_attn.k_norm",
}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# What a stock class takes where its config.json is silent, for every key that its forward reads; `...` must be said.
_WINDOWS: dict[str, Any] = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
_COMMON: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), ...),
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": 1.0,
}
_FORWARD: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "attention_bias": False, "mlp_bias": False},
    "mistral": {**_COMMON, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {**_COMMON, "num_key_value_heads": 32, **_WINDOWS},
    "qwen3": {**_COMMON, "num_key_value_heads": 32, "head_dim": 128, "attention_bias": False, **_WINDOWS},
}
# Keys of a config.json that change no logit: names, ids, what training, saving and sampling had.
_NO_MATTER = frozenset(
    [
        "architectures",
        "model_type",
        "transformers_version",
        "_name_or_path",
        "dtype",
        "torch_dtype",
        "use_cache",
        "initializer_range",
        "pretraining_tp",
        "max_position_embeddings",
        "max_sequence_length",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "unk_token_id",
        "sep_token_id",
        "cls_token_id",
        "tokenizer_class",
        "attn_implementation",
        "_attn_implementation",
        "return_dict",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "is_llama_config",
        "unsloth_version",
        "unsloth_fixed",
        "transformers.js_config",
        "max_length",
        "min_length",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "do_sample",
        "num_beams",
        "num_beam_groups",
        "num_return_sequences",
        "length_penalty",
        "repetition_penalty",
        "diversity_penalty",
        "chunk_size_feed_forward",
    ]
)
_ROPE = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
_ORIGINAL = "original_max_position_embeddings"


def llama_name(role: Role) -> str:
    """Return the name of a parameter in the family's state dicts. Raises ConfigError for a role that none of them has."""
    kind = "bias" if role.tensor.split(".")[-1] == "bias" else "weight"
    tensor = role.tensor.removesuffix("bias").removesuffix(".")
    if role.layer is not None and (role.part, tensor) in _TENSORS:
        return f"model.layers.{role.layer}.{_TENSORS[role.part, tensor]}.{kind}"
    outer = {("embedding", ""): "model.embed_tokens", ("norm", "final"): "model.norm", ("head", ""): "lm_head"}
    if (role.part, tensor) in outer and (role.part != "head" or kind == "weight"):
        return f"{outer[role.part, tensor]}.{kind}"
    raise ConfigError(f"Llama and its family have no parameter for {role}; this model opens with seedbed only")


def llama_weights(model: Transformer) -> Mapping[str, Tensor]:
    """Return the weights under the family's names (a tied head is left out, as there)."""
    return {llama_name(model.roles[name]): p.detach() for name, p in model.named_parameters()}


def llama_config(config: Shape, *, vocab_size: int) -> dict[str, object]:
    """Return the fields of a config.json that describe this decoder, for the first class of the family that has them all.

    Llama is plain, Mistral has a window, Qwen2 biases of queries, keys and values, Qwen3 norms of queries and keys. Both
    forms of transformers (4 and 5) read the fields. Raises ConfigError, with what is missing, if no class fits.
    """
    family = _family(config)
    lacking = _lacking(config, family)
    if lacking:
        raise ConfigError(
            f"this decoder is not one of the stock classes ({', '.join(_CLASSES.values())}): none has {lacking}. It opens with "
            "seedbed only; write it with `--to safetensors`"
        )
    fields: dict[str, object] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.init_std,
    }
    if config.rope_scaling is not None:
        fields["rope_scaling"] = _rope_as_written(config.rope_scaling)
    if "attention_bias" in _FORWARD[family]:
        fields["attention_bias"] = config.attention_bias
    if "mlp_bias" in _FORWARD[family]:
        fields["mlp_bias"] = config.mlp_bias
    if "sliding_window" in _FORWARD[family]:
        fields["sliding_window"] = config.window
    if "layer_types" in _FORWARD[family]:
        kind = "full_attention" if config.window is None else "sliding_attention"
        fields |= {"use_sliding_window": config.window is not None, "max_window_layers": 0}
        fields["layer_types"] = [kind] * (config.num_layers or 0)
    return fields


def folder_settings(folder: str) -> dict[str, Any]:
    """Return the settings of a decoder that computes what a model folder (or `NAME`, `NAME@REVISION` of the hub) computes.

    Raises DataError for a config.json that is missing or broken, ConfigError for what our decoder does not do, RefusedError
    for a folder that brings code of its own or is quantized.
    """
    place = _place(folder)
    file = place / CONFIG
    config = _object(file)
    family = config.get("model_type")
    if config.get("auto_map"):
        raise RefusedError(
            f"{file} names code of its own (auto_map), which is never run here. If a stock class computes the same, copy the "
            "folder, take `auto_map` out and set model_type; else write the weights under a stock class's names and save them "
            "with its save_pretrained"
        )
    if config.get("quantization_config"):
        raise RefusedError(
            f"{file} has a quantization_config; only weights of 16 bits or more are read. Convert them: "
            f"model = transformers.AutoModelForCausalLM.from_pretrained({str(place)!r}); "
            "model.dequantize().save_pretrained('CONVERTED')"
        )
    if family not in _FORWARD:
        raise ConfigError(f"{file}: the model_type {family!r} is not known; {nearest(str(family), _FORWARD)}")
    unknown = [key for key, value in config.items() if value and key not in _FORWARD[family] and key not in _NO_MATTER]
    if unknown:
        raise ConfigError(
            f"{file}: {', '.join(unknown)}: nothing is known here of a {family} with this, so its logits could be others; if "
            "it changes none, take it out of a copy of the folder"
        )
    said = {key: _checked(file, config, key, default) for key, default in _FORWARD[family].items()}
    if said["hidden_act"] not in ("silu", "swish"):
        raise ConfigError(f"{file}: hidden_act is {said['hidden_act']!r}; our MLP has silu only: take another model")
    rope_base, rope_scaling = _rope(file, said)
    heads = said["num_attention_heads"]
    return {
        "num_layers": said["num_hidden_layers"],
        "d_model": said["hidden_size"],
        "num_heads": heads,
        "num_kv_heads": said["num_key_value_heads"] or heads,
        "head_dim": said["head_dim"] or said["hidden_size"] // heads,
        "d_ff": said["intermediate_size"],
        "vocab_size": said["vocab_size"],
        "tied_embeddings": said["tie_word_embeddings"],
        "attention_bias": "qkv" if family == "qwen2" else said.get("attention_bias", False),
        "mlp_bias": said.get("mlp_bias", False),
        "qk_norm": family == "qwen3",
        "attention_dropout": float(said["attention_dropout"]),
        "rope_base": rope_base,
        "rope_scaling": rope_scaling,
        "norm_eps": float(said["rms_norm_eps"]),
        "window": _window(file, said),
    }


def folder_weights(folder: str) -> dict[Role, Tensor]:
    """Return the weights of a model folder by role, in fp32; a tied head is the embedding and has no role of its own.

    Raises DataError for files that are missing, cut or do not fit config.json, RefusedError for weights in other formats.
    """
    place = _place(folder)
    settings = folder_settings(folder)
    with torch.device("meta"):
        model = Transformer(_shape(settings), vocab_size=settings["vocab_size"])
    wanted = {llama_name(model.roles[name]): (model.roles[name], tuple(p.shape)) for name, p in model.named_parameters()}
    tied = {"lm_head.weight"} if settings["tied_embeddings"] else set()
    files = _weight_files(place)
    where = _names(files)
    missing = sorted(wanted.keys() - where.keys())
    odd = sorted(name for name in where.keys() - wanted.keys() - tied if not name.endswith("rotary_emb.inv_freq"))
    if missing or odd:
        said = [f"{word} {_some(names)}" for word, names in (("it lacks", missing), ("it also holds", odd)) if names]
        raise DataError(
            f"the weights of {place} do not fit its {CONFIG}: {' and '.join(said)}; give a folder that save_pretrained of "
            f"{_CLASSES[_object(place / CONFIG)['model_type']]} wrote"
        )
    found: dict[str, Tensor] = {}
    for file in files:
        with _opened(file) as opened:
            for name in (n for n in opened.keys() if n in wanted or n in tied):  # noqa: SIM118  # no mapping
                found[name] = _as_fp32(opened.get_tensor(name), name=name, file=file)
    misfits = [f"{n} ({tuple(found[n].shape)}, not {shape})" for n, (_, shape) in wanted.items() if found[n].shape != shape]
    if misfits:
        raise DataError(f"the weights of {place} do not fit its {CONFIG}: {_some(misfits)}; give files that belong together")
    for name in tied & found.keys():
        if not torch.equal(found[name], found["model.embed_tokens.weight"]):
            raise DataError(
                f"{place / CONFIG} ties head and embedding, but {name} differs from model.embed_tokens.weight; set "
                "tie_word_embeddings to false in a copy if the head is its own"
            )
    return {role: found[name] for name, (role, _) in wanted.items()}


def _shape(settings: Mapping[str, Any]) -> Shape:
    """Return the shape that a folder's settings say."""
    known = {f.name for f in dataclasses.fields(Shape)}
    said = {name: value for name, value in settings.items() if name in known}
    return Shape(**{**said, "head_dim": said["head_dim"] or said["d_model"] // said["num_heads"]})


def folder_fingerprint(folder: str) -> str:
    """Return a hash of config.json and of the weight files, all of their bytes."""
    place = _place(folder)
    digests = []
    for file in (place / CONFIG, *_weight_files(place)):
        try:
            facts = file.stat()
            digests.append(_digest(file, facts.st_size, facts.st_mtime_ns))
        except OSError as e:
            raise DataError(f"{file} cannot be read ({e.strerror}); give a whole model folder") from None
    return sha256("\n".join(digests).encode()).hexdigest()[:16]


@cache
def _digest(file: Path, size: int, changed_ns: int) -> str:
    """The hash of a file, computed once for every size and time of change."""
    with file.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()


def _family(config: Shape) -> str:
    if config.qk_norm:
        return "qwen3"
    if config.attention_bias == "qkv":
        return "qwen2"
    odd_width = config.width % (config.num_heads or 1)  # transformers refuses a Llama with it
    return "mistral" if config.window is not None or odd_width else "llama"


def _lacking(config: Shape, family: str) -> str:
    """What the decoder has and the family's class does not, in words; empty if it has all."""
    beside = {
        "llama": "a plain decoder",
        "mistral": "a window or a d_model that num_heads does not divide",
        "qwen2": "biases of queries, keys and values only",
        "qwen3": "norms of queries and keys",
    }[family]
    replaced = [site for site, layer in config.layers.items() if layer not in ("default", {"kind": "default"})]
    bias = config.attention_bias
    found = [
        f"a {config.mask} mask" if config.mask != "causal" else "",
        f"a layer of one's own for {', '.join(replaced)}" if replaced else "",
        "a head bias" if config.head_bias else "",
        f"biases in the MLP beside {beside}" if config.mlp_bias and family != "llama" else "",
        f"biases of the attention beside {beside}" if bias is True and family == "mistral" else "",
        f"biases of queries, keys and values only beside {beside}" if bias == "qkv" and family == "qwen3" else "",
    ]
    return ", ".join(filter(None, found))


def _rope_as_written(scaling: Mapping[str, float | str]) -> dict[str, float | str]:
    """The scaling as config.json has it: `rope_type`, and the original context as a whole number."""
    numbers = {key: value for key, value in scaling.items() if key not in ("type", "rope_type")}
    if _ORIGINAL in numbers:
        numbers[_ORIGINAL] = int(numbers[_ORIGINAL])
    return {"rope_type": str(scaling.get("rope_type", scaling.get("type"))), **numbers}


def _rope(file: Path, said: Mapping[str, Any]) -> tuple[float, dict[str, float | str] | None]:
    """Return base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    given = dict(said["rope_scaling"] or said["rope_parameters"] or {})
    kind = given.pop("rope_type", None) or given.get("type", "default")
    given.pop("type", None)
    base, part = given.pop("rope_theta", said["rope_theta"]), given.pop("partial_rotary_factor", said["partial_rotary_factor"])
    if kind not in _ROPE:
        raise ConfigError(f"{file}: the rope_type {kind!r} is not known; known: {', '.join(_ROPE)}: take another model")
    if part not in (None, 1):
        raise ConfigError(f"{file}: partial_rotary_factor is {part!r}; here all channels turn (1): take another model")
    unknown = [key for key, value in given.items() if value and key not in (*_ROPE[kind], _ORIGINAL)]
    if unknown:
        raise ConfigError(f"{file}: {', '.join(unknown)} of a {kind} rope is not known here: take another model")
    if not _is(base, "number") or base <= 0:
        raise DataError(f"{file}: rope_theta is {base!r}, it must be a number above 0; mend the file")
    needed = [*_ROPE[kind], _ORIGINAL] if kind == "llama3" else _ROPE[kind]
    wrong = [key for key in needed if not _is(given.get(key), "number") or given[key] <= 0]
    if wrong:
        raise DataError(f"{file}: a {kind} rope needs numbers above 0 for {', '.join(wrong)}; mend the file")
    scaling = {"rope_type": kind, **{key: given[key] for key in needed}}
    return float(base), None if kind == "default" else scaling


def _window(file: Path, said: Mapping[str, Any]) -> int | None:
    window: int | None = said.get("sliding_window")
    if window is None or not said.get("use_sliding_window", True):
        return None
    if "layer_types" not in said:
        return window
    layers, first = said["num_hidden_layers"], said["max_window_layers"]
    sliding = said["layer_types"] or ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if set(sliding) == {"full_attention"}:
        return None
    if len(sliding) != layers or set(sliding) != {"sliding_attention"}:
        raise ConfigError(
            f"{file}: {sliding.count('sliding_attention')} of {layers} layers have a window (layer_types, max_window_layers); "
            "here all layers have it or none: take another model"
        )
    return window


_SHAPES = {
    "count": "a whole number from 1 on",
    "number": "a number from 0 on",
    "flag": "true or false",
    "word": "a text",
    "words": "a list of texts",
    "object": "an object",
}
_KINDS = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), "count"),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "sliding_window"), "count"),
    **dict.fromkeys(
        ("rms_norm_eps", "attention_dropout", "rope_theta", "partial_rotary_factor", "max_window_layers"), "number"
    ),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), "flag"),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), "object"),
    "hidden_act": "word",
    "layer_types": "words",
}
_MAY_BE_NULL = ("num_key_value_heads", "head_dim", "sliding_window", "rope_scaling", "rope_parameters", "layer_types")


def _checked(file: Path, config: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of a key, or what the stock class takes for it. Raises DataError if it is none of the right kind."""
    value = config.get(key, default)
    if value is ... or not (_is(value, _KINDS[key]) or (value is None and key in _MAY_BE_NULL)):
        given = "is missing" if value is ... else f"is {value!r}"
        raise DataError(f"{file}: {key} {given}; it must be {_SHAPES[_KINDS[key]]}: mend the file or give another folder")
    return value


def _is(value: Any, kind: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return {
        "count": number and isinstance(value, int) and value >= 1,
        "number": number and value >= 0,
        "flag": isinstance(value, bool),
        "word": isinstance(value, str),
        "words": isinstance(value, list) and all(isinstance(v, str) for v in value),
        "object": isinstance(value, dict),
    }[kind]


def _place(name: str) -> Path:
    place = Path(name).expanduser()
    if place.is_dir():
        return place
    found = re.fullmatch(r"(?P<repo>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[\w./-]+))?", name)
    if found is None or place.exists():
        raise DataError(f"there is no model folder {name}; give one that holds {CONFIG} and {WEIGHTS}")
    return _downloaded(found["repo"], found["revision"])


@cache
def _downloaded(repo: str, revision: str | None) -> Path:
    """The folder of a model of the hub, once a process; offline it is the one that was downloaded before."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DataError(
            f"there is no model folder {repo}, and reading it from the hub needs a further package: pip install 'seedbed[hf]'"
        ) from None
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(_READ)))
    except Exception as e:  # whatever the package and the network raise
        problem = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        raise DataError(
            f"there is no model folder {repo}, and the hub does not give it ({problem}); check the name, or get it where there "
            f"is a network with `hf download {repo} --local-dir DIR` and give DIR"
        ) from None


def _object(file: Path) -> dict[str, Any]:
    return read_object(file, advice="mend it, or get the model folder again")


def _weight_files(place: Path) -> list[Path]:
    """The safetensors of a folder: one, or those that its index names, which must lie in the folder itself."""
    if (place / WEIGHTS).is_file():
        return [place / WEIGHTS]
    if not (place / INDEX).is_file():
        raise _unreadable(place)
    names = _object(place / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise DataError(f"{place / INDEX} has no weight_map that says which file holds which tensor; get the folder again")
    shards = sorted({str(shard) for shard in names.values()})
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise DataError(f"{place / INDEX} names {shard!r}; a shard is a .safetensors file in the folder itself")
    return [place / shard for shard in shards]


def _unreadable(place: Path) -> RefusedError | DataError:
    """What to say of a folder without safetensors: how its other weights are converted, if it has any."""
    suffixes = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".msgpack")
    others = sorted(p for p in place.iterdir() if p.suffix in suffixes and p.name != "training_args.bin")
    if not others:
        return DataError(
            f"{place} holds neither {WEIGHTS} nor {INDEX}; give a folder with weights (of a model whose weights are pickles "
            "nothing is downloaded: open it with transformers and save it with save_pretrained)"
        )
    first = others[0]
    opened = f"AutoModelForCausalLM.from_pretrained({str(place)!r})"
    lines = ["from transformers import AutoModelForCausalLM", f"model = {opened}", "model.save_pretrained('CONVERTED')"]
    if first.suffix == ".gguf":
        lines[1] = f"model = {opened[:-1]}, gguf_file={first.name!r})"
    elif first.suffix in (".h5", ".msgpack"):
        lines[1] = f"model = {opened[:-1]}, {'from_tf' if first.suffix == '.h5' else 'from_flax'}=True)"
    elif not first.name.startswith("pytorch_model"):
        lines = [
            "import torch, safetensors.torch",
            f"weights = torch.load({str(first)!r}, map_location='cpu', weights_only=True)",
            f"safetensors.torch.save_file({{n: t.clone() for n, t in weights.items()}}, {str(place / WEIGHTS)!r})",
        ]
    return RefusedError(
        f"{place} holds its weights as {first.name}, which is not read here: a pickle can run code, and other formats round. "
        "Convert it once, if you trust where it comes from, with a transformers that can open it: " + "; ".join(lines)
    )


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as e:
        raise DataError(f"{file} is missing, cut or broken ({e}); get the file again") from None


def _names(files: list[Path]) -> dict[str, Path]:
    """Which file holds which tensor."""
    where: dict[str, Path] = {}
    for file in files:
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping
                if name in where:
                    raise DataError(f"{file} and {where[name].name} both hold {name}; get the folder again")
                where[name] = file
    return where


def _as_fp32(tensor: Tensor, *, name: str, file: Path) -> Tensor:
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise DataError(f"{file}: {name} is {tensor.dtype}; weights are read as floats of 16 to 64 bits: save them as such")
    return tensor.to(torch.float32, copy=True)  # the file is mapped, and may change under us


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
