"""A run's model as a folder that others open: `transformers` without arguments, or our own loader where no stock class fits.

Nothing is promised that was not looked at: before the folder gets its name, it is opened as its reader will open it, logits and
ids are held against the run's own, and the largest difference stands in the card (README.md) and in export.json.
Letters: T positions, V vocabulary.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from seedbed import __version__, models
from seedbed.core.draws import stream
from seedbed.core.durable import check_place, refuse_existing, whole_folder
from seedbed.core.errors import ConfigError, DataError, RunFailedError, nearest
from seedbed.core.json_files import read_object
from seedbed.core.records import Batch
from seedbed.engine.checkpoints import latest, read_state
from seedbed.experiments.commands import Trained, open_run
from seedbed.experiments.export.card import card
from seedbed.experiments.export.tokenizer import tokenizer_files
from seedbed.experiments.parts import model_part
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.run.run import finished
from seedbed.experiments.streams import build_stream
from seedbed.models.forms import dense_twin
from seedbed.models.hugging_face import WEIGHTS, llama_config, llama_weights
from seedbed.models.shape import Shape
from seedbed.models.transformer import Transformer
from seedbed.tokenizers.file import TEMPLATE

FORMATS = ("hf", "safetensors")
LIMIT = 1e-4  # the largest difference of a logit that is still the same model, in fp32
RECORD, CARD = "export.json", "README.md"
_TEXTS = (  # what exported tokenizers often get wrong
    "",
    " ",
    "  two spaces, a tab\tand one behind ",
    "line\n\nline\r\nline\r",
    "Hello , world ! it 's n't ( a ) test . ",
    "naïve café, e\u0301 and é, 日本語, 🙂‍↔️, ﬁ",
    "\u00a0\u2028\u200b\ufeff\x00\x01\x7f",
    "<s>a</s> <|endoftext|> [CLS][SEP] <unk>",
)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written and how exact it is."""

    folder: Path
    format: str
    largest_logit_difference: float | None  # None: the folder holds the run's own weights, opened by our own loader
    tokens_equal: bool | None  # None: none were compared
    notes: tuple[str, ...]


@dataclass(kw_only=True)
class _Found:
    """What an export collects on its way."""

    files: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    difference: float | None = None
    positions: int = 0
    tokens_equal: bool | None = None
    texts: int = 0


def export(run: str | Path, out: str | Path, *, to: str = "hf", device: str = "cpu") -> Exported:
    """Write the model of a run's newest checkpoint to a new folder, in fp32, with its tokenizer, a card and a record.

    `to` "hf" opens in transformers (AutoModelForCausalLM, AutoTokenizer) without arguments; "safetensors" with `open_export`.
    Raises RefusedError if the folder exists, ConfigError if no stock class is this model, DataError without transformers,
    RunFailedError if the folder does not give the run's logits.
    """
    run, out = Path(run), Path(out)
    if to not in FORMATS:
        raise ConfigError(f"no format {to!r} to export to; {nearest(to, FORMATS)}")
    refuse_existing(out, empty=True)
    check_place(out, folder=True)
    if to == "hf":
        _transformers()
    trained = open_run(run, device=device)
    found = _Found()
    files, notes = tokenizer_files(trained.tokenizer, seq_len=trained.seq_len)
    found.files |= files
    found.notes += notes
    if to == "hf":
        _add_stock_model(found, trained)
    else:
        _add_own_model(found, trained)
    found.files["resolved.yaml"] = (run / "resolved.yaml").read_bytes()
    found.notes += _about(run, trained)
    with whole_folder(out) as place:
        _write(place, found.files)
        if to == "hf":
            texts = _held_out_texts(found, trained.plan)
            _compare_logits(found, trained, place, texts)
            _compare_tokens(found, trained, place, texts)
        record = _record(run, found, trained, to=to)
        text = card(run, record, licences=trained.reader.licences)
        _write(place, {RECORD: (json.dumps(record, indent=1) + "\n").encode(), CARD: text.encode()})
    return Exported(
        folder=out,
        format=to,
        largest_logit_difference=found.difference,
        tokens_equal=found.tokens_equal,
        notes=tuple(found.notes),
    )


def open_export(folder: str | Path) -> Any:
    """Return the model of a folder that was exported to "safetensors", in evaluation mode: our own loader, in one line.

    Raises DataError if the folder is none of these, or its weights were altered.
    """
    place = Path(folder)
    try:
        record, raw = read_object(place / RECORD, advice="export the run again"), (place / WEIGHTS).read_bytes()
        to, part, digest = record["format"], record["model"], record["sha256"][WEIGHTS]
    except (DataError, OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{place} is no exported folder ({e}); give one that `seedbed export --to safetensors` wrote") from None
    if to != "safetensors":
        raise DataError(f"{place} was exported to {to}; open it with transformers, or as `size: hf:{place}` of a decoder")
    if sha256(raw).hexdigest() != digest:
        raise DataError(f"{place / WEIGHTS} was altered or cut since it was written; export the run again")
    model = models.parts.build(part, path="model").build(vocab_size=record["vocab_size"])
    weights = load(raw)
    with torch.no_grad():
        for name, tensor in _own_tensors(model).items():
            tensor.copy_(weights[name])
    return model.eval()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise DataError(
            "an export to hf is opened with transformers before it is called done: pip install 'seedbed[hf]' (or export "
            "`--to safetensors`)"
        ) from None
    return transformers


def _write(place: Path, files: Mapping[str, bytes]) -> None:
    for name, raw in files.items():
        (place / name).write_bytes(raw)


def _add_stock_model(found: _Found, trained: Trained) -> None:
    """Weights, config.json and generation_config.json for the class of the Llama family that this model is."""
    stock = dense_twin(trained.model)
    ids = {"bos_token_id": trained.tokenizer.boundary_id, "eos_token_id": trained.tokenizer.boundary_id}
    made_by = {"transformers_version": _transformers().__version__}
    settings = {
        **_stock_config(stock),
        "max_position_embeddings": trained.seq_len,
        "torch_dtype": "float32",
        **ids,
        **made_by,
    }
    found.files["config.json"] = (json.dumps(settings, indent=2) + "\n").encode()
    found.files["generation_config.json"] = (json.dumps({**ids, **made_by}, indent=2) + "\n").encode()
    weights = {name: p.to("cpu", torch.float32).contiguous() for name, p in llama_weights(stock).items()}
    found.files[WEIGHTS] = save(weights, metadata={"format": "pt"})
    if trained.model.config.document_mask:
        found.notes.append(
            "In training, documents of one row did not see each other; transformers has no such mask, so give it one document "
            "a row, which is the same."
        )


def _add_own_model(found: _Found, trained: Trained) -> None:
    """Weights under our own names, as they are."""
    found.files[WEIGHTS] = save({name: t.detach().cpu().contiguous() for name, t in _own_tensors(trained.model).items()})
    try:
        _stock_config(dense_twin(trained.model))
    except ConfigError:
        found.notes.append("No stock class of transformers computes what this model does, so nothing but seedbed opens it.")


def _stock_config(model: Any) -> dict[str, object]:
    if type(model) is not Transformer:
        raise ConfigError("this model is no `decoder`, so it opens with seedbed only; write it with `--to safetensors`")
    return llama_config(model.config, vocab_size=model.vocab_size)


def _own_tensors(model: Any) -> dict[str, Tensor]:
    """All that a model keeps: parameters (a tied one once), and the buffers of a layer that has some."""
    kept = model.state_dict()
    return {**dict(model.named_parameters()), **{name: b for name, b in model.named_buffers() if name in kept}}


def _held_out_texts(found: _Found, plan: RunPlan) -> list[str]:
    """The first validation documents of the last stage's stream; none, and a note, if the data are not there."""
    stage = plan.stages[-1]
    try:
        corpus = next(iter(build_stream(stage.stream, plan.streams[stage.stream]).corpora.values()))
        return [document.text for document in islice(corpus.documents("valid"), 16)]
    except DataError as e:
        found.notes.append(f"The run's held-out text was not there ({str(e).split(';')[0]}): compared on random ids alone.")
        return []


def _compare_logits(found: _Found, trained: Trained, place: Path, texts: Sequence[str]) -> None:
    """Open the folder as its reader will, and hold its logits against the run's, on held-out text and on random ids."""
    with _quiet():
        theirs, loading = _transformers().AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
    odd = [f"{k}: {loading[k]}" for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if loading.get(k)]
    if odd or theirs.dtype != torch.float32:
        raise RunFailedError(
            f"transformers opens the export with {', '.join(odd) or theirs.dtype}; nothing was written: export with "
            "`--to safetensors` and report this"
        )
    device = next(trained.model.parameters()).device
    theirs, largest = theirs.to(device).eval(), 0.0
    for row_T in _rows(trained, texts):
        ids_BT = torch.from_numpy(row_T)[None].to(device)
        with torch.no_grad():
            apart_BTV = trained.model(Batch(tokens_BT=ids_BT)).logits() - theirs(ids_BT).logits.float()
        found.positions += len(row_T)
        largest = max(largest, float(apart_BTV.abs().nan_to_num(nan=torch.inf).max()))
    if largest >= LIMIT:
        raise RunFailedError(
            f"the logits of the exported model differ from the run's by up to {largest:.2g}, {LIMIT:g} is allowed; nothing was "
            "written: export with `--to safetensors`, on the CPU if this was another device, and report this"
        )
    found.difference = largest


def _rows(trained: Trained, texts: Sequence[str]) -> list[np.ndarray]:
    """Up to two rows of held-out documents, and two of random ids."""
    ids = [np.concatenate([[trained.tokenizer.boundary_id], trained.tokenizer.encode(text)]) for text in texts]
    text_T = np.concatenate([np.empty(0, np.int64), *ids])[: 2 * trained.seq_len].astype(np.int64)
    draws = stream(trained.plan.seed, "export")
    random_RT = draws.integers(0, trained.model.vocab_size, (2, trained.seq_len))
    return [text_T[start : start + trained.seq_len] for start in range(0, len(text_T), trained.seq_len)] + list(random_RT)


def _compare_tokens(found: _Found, trained: Trained, place: Path, texts: Sequence[str]) -> None:
    """Hold the exported tokenizer's ids and its way back against the run's."""
    if "tokenizer.json" not in found.files:
        return
    theirs, ours = _transformers().AutoTokenizer.from_pretrained(place), trained.tokenizer
    added, differing = theirs.get_added_vocab(), []
    for text in [*_TEXTS, *(f"a{token} b" for token in added), *texts]:
        if TEMPLATE in found.files and any(token in text for token in added):
            continue  # another reading, as its note says
        try:
            ids = ours.encode(text).tolist()
        except DataError:
            continue  # no text for this tokenizer
        found.texts += 1
        read = theirs(text, verbose=False)["input_ids"]
        plain = set(ids).isdisjoint(added.values())  # else, such as where a sign is unknown, ours shows what "skip" leaves out
        back = theirs.decode(read, skip_special_tokens=True) if plain else theirs.decode(read[1:])
        if read != [ours.boundary_id, *ids] or back != ours.decode(np.array(ids, dtype=np.int32)):
            differing.append(text)
    found.tokens_equal = not differing
    if differing:
        found.notes.append(
            f"transformers reads {len(differing)} of {found.texts} texts with this tokenizer otherwise than seedbed does, such "
            f"as {differing[0][:60]!r}: give the model the ids of seedbed's own tokenizer."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    logging = _transformers().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _about(run: Path, trained: Trained) -> list[str]:
    """What a reader has to know about the run itself."""
    final, notes = finished(run), list[str]()
    if final is None:
        notes.append("The run had not ended: these are the weights of its newest checkpoint.")
    elif final["status"] != "done":
        notes.append(f"The run failed, and these are the weights of its newest checkpoint: {final['error']}")
    named = [spec.named_sources for spec in trained.plan.streams.values()]
    paths = [part["path"] for parts in named for part in parts.values() if isinstance(part, dict) and "path" in part]
    if any(not str(path).startswith(("builtin:", "hub:")) for path in paths):
        notes.append("resolved.yaml names the data by the paths that the recipe gave; look at it before you hand it on.")
    return notes


def _record(run: Path, found: _Found, trained: Trained, *, to: str) -> dict[str, Any]:
    """export.json."""
    plan, config = trained.plan, getattr(trained.model, "config", None)
    part = model_part(plan, plan.stages[-1])
    if isinstance(config, Shape):  # with all sizes said, so that no folder named under `size` is needed again
        part = {**asdict(config), "kind": part if isinstance(part, str) else part["kind"], "size": None}
    checkpoint = latest(run / "checkpoints")
    assert checkpoint is not None
    state, final = read_state(checkpoint), finished(run) or {}
    done = final.get("status") == "done"
    packages = ("torch", "safetensors", "tokenizers", *(("transformers",) if to == "hf" else ()))
    return {
        "format": to,
        "run": {
            "name": plan.name,
            "arm": plan.arm,
            "seed": plan.seed,
            "plan": plan.fingerprint(),
            "commit": _commit(run, final),
        },
        "run_step": state["counters"]["run_step"],
        "ended": done,
        "model": part,
        "vocab_size": getattr(trained.model, "vocab_size", trained.tokenizer.vocab_size),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "seq_len": trained.seq_len,
        "boundary_id": trained.tokenizer.boundary_id,
        "tokenizer": trained.tokenizer.fingerprint(),
        "data": final["data"] if done else state["data"],
        "ledger": final["ledger"] if done else state["ledger"],
        "evaluations": {
            name: {k: found[k] for k in ("measures", "numbers", "notes") if k in found}
            for name, found in final.get("evaluations", {}).items()
        },
        "sha256": {name: sha256(raw).hexdigest() for name, raw in found.files.items()},
        "largest_logit_difference": found.difference,
        "positions_compared": found.positions,
        "tokens_equal": found.tokens_equal,
        "texts_compared": found.texts,
        "notes": found.notes,
        "versions": {"seedbed": __version__, **{name: version(name) for name in packages}},
    }


def _commit(run: Path, final: Mapping[str, Any]) -> str:
    if "commit" in final:
        return str(final["commit"])
    file = run / "env.json"
    return str(read_object(file, advice="put it back")["commit"]) if file.is_file() else "unknown"
