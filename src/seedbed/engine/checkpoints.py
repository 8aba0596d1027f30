"""Checkpoints: a folder with model.safetensors, optimizer.safetensors and state.json, whole or absent, never a pickle.

A run whose weights are split over ranks writes a file shard-<rank>-... of each rank instead (torch.distributed.checkpoint, in
its safetensors format): its parts of all tensors, moments as name|key. Either form opens on any number of ranks. state.json
carries the SHA-256 of all tensor files and of itself, so a flipped bit or a truncated file is found when it is opened; a run
then goes back to the checkpoint before. Writing them is saving.py's.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from seedbed.core.durable import whole_folder
from seedbed.core.errors import DataError, RefusedError
from seedbed.engine.system import System

FORMAT = 3  # 2: without roles and vocabulary
MODEL, OPTIMIZER, FINAL = "model.safetensors", "optimizer.safetensors", "final"
OBJECTIVES = "objectives."  # what objectives have built; see system.py
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # any other error of reading harms no checkpoint
_REMEDY = (
    "an unfinished run goes on from the checkpoint before it with `seedbed resume`; of a finished one put the file back, "
    "or start the run again"
)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A whole checkpoint in memory; later steps change nothing of it."""

    files: Mapping[str, bytes]
    content: dict[str, Any]  # of state.json, but for hashes


def pack(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> Packed:
    moments, numbers = flatten(model, optimizer)
    files = {MODEL: save({name: p.detach().contiguous() for name, p in named(model)}), OPTIMIZER: save(moments)}
    return Packed(files=files, content=content_of(state, numbers))


def write(folder: Path, packed: Packed) -> None:
    """Write a checkpoint; a crash on the way leaves nothing that looks like one."""
    with whole_folder(folder, over=True) as temporary:
        for name, raw in packed.files.items():
            (temporary / name).write_bytes(raw)
        write_state(temporary, packed.content, hashes={name: sha256(raw).hexdigest() for name, raw in packed.files.items()})


def content_of(state: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return what state.json will say, but for hashes, as a copy."""
    return json.loads(json.dumps({"format": FORMAT, "optimizer": numbers, **state}))


def write_state(folder: Path, content: Mapping[str, Any], *, hashes: Mapping[str, str]) -> None:
    said = {**content, "sha256": hashes}
    (folder / "state.json").write_text(json.dumps({**said, "self": _own_hash(said)}, indent=1), encoding="utf-8")


def _own_hash(content: Mapping[str, Any]) -> str:
    """Return the hash of all that state.json says but this hash."""
    said = json.loads(json.dumps({k: v for k, v in content.items() if k != "self"}))  # as it will be read
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_state(folder: Path) -> dict[str, Any]:
    """Return state.json. Raises DataError if it is missing, broken or altered, RefusedError if it is of another format."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (*_GONE, ValueError) as e:
        raise DataError(f"the checkpoint {folder} cannot be read: {e}; {_REMEDY}") from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise DataError(f"{folder / 'state.json'} is no state of a checkpoint; {_REMEDY}")
    if state["format"] != FORMAT:
        raise RefusedError(
            f"the checkpoint {folder} has format {state['format']}, this version reads {FORMAT}; go on with the version of "
            "seedbed that wrote it (env.json names it), or start a new run with another --out"
        )
    if state.get("self") != _own_hash(state):
        raise DataError(f"{folder / 'state.json'} was altered since it was written; {_REMEDY}")
    return state


def newest_whole(folder: Path, *, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """Return a run's newest checkpoint that is whole, with its state; a harmed one is named and moved aside.

    The caller holds the run's lock. Raises DataError if there are checkpoints and none is whole.
    """
    harmed = ""
    for checkpoint in _newest_first(folder):
        try:
            state = read_state(checkpoint)
            for name in state["sha256"]:
                _check_hash(checkpoint, name, state)
        except DataError as e:
            harmed = str(e).removesuffix(f"; {_REMEDY}")
            aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(checkpoint, aside)
            say(f"note: {harmed}; that checkpoint now stands as {aside.name}, going back to the one before")
            continue
        return checkpoint, state
    damaged = sorted(p.name for p in folder.glob("damaged-*"))
    if harmed:
        raise DataError(
            f"no whole checkpoint is left: {harmed}; put a file back (the folder is now {', '.join(damaged)}), or resume "
            "once more to begin with the first step"
        )
    if damaged:
        say(f"note: all checkpoints were harmed ({', '.join(damaged)}): beginning with the first step")
    return None


def prune(folder: Path, *, keep: set[str], last: int, every: int | None) -> None:
    """Remove checkpoints but the newest `last`, those at multiples of `every` steps, those named and the final one."""
    steps = [p for p in _newest_first(folder) if p.name != FINAL]
    for old in steps[last:]:
        if old.name not in keep and not (every and int(old.name.removeprefix("step-")) % every == 0):
            shutil.rmtree(old, ignore_errors=True)
    for half in folder.glob(".step-*"):  # of a killed run; nobody else writes here
        shutil.rmtree(half, ignore_errors=True)


def load_checkpoint(folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fill model (and optimizer) from a checkpoint and return its state.

    Raises DataError if a file is missing, altered or does not fit the model.
    """
    state = read_state(folder)
    wanted = dict(named(model))
    if any(_is_split(p) for p in wanted.values()):
        _load_parts(folder, wanted, state, optimizer)
        return state
    weights = _without_objectives(_read(folder, MODEL, state), wanted)
    _check_fit(folder, wanted, {name: value.shape for name, value in weights.items()})
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])
    if optimizer is not None:
        fill_moments(model, optimizer, load_moments(folder))
    return state


def _without_objectives(found: dict[str, Any], wanted: Mapping[str, Tensor]) -> dict[str, Any]:
    """Leave out what objectives have built, where a model is wanted alone."""
    if any(name.startswith(OBJECTIVES) for name in wanted):
        return found
    return {name: value for name, value in found.items() if not name.startswith(OBJECTIVES)}


def _check_fit(folder: Path, wanted: Mapping[str, Tensor], found: Mapping[str, torch.Size]) -> None:
    if set(found) != set(wanted):
        odd = sorted(set(found) ^ set(wanted))
        raise DataError(f"the checkpoint {folder} does not fit this model: {', '.join(odd[:4])} on one side only")
    misfits = [n for n in wanted if wanted[n].shape != found[n]]
    if misfits:
        raise DataError(f"the checkpoint {folder} does not fit this model: {', '.join(misfits[:4])} have other shapes")


def _load_parts(
    folder: Path, wanted: Mapping[str, Tensor], state: Mapping[str, Any], optimizer: torch.optim.Optimizer | None
) -> None:
    """Fill a split model (and its optimizer): every rank reads its parts of every tensor, whoever wrote them."""
    from torch.distributed.checkpoint.state_dict_loader import load

    reader, known = _shards(folder)
    there = _without_objectives({name: m.size for name, m in known.items() if "|" not in name}, wanted)
    _check_fit(folder, wanted, there)
    parts = {name: p.detach() for name, p in wanted.items()}
    if optimizer is not None:
        optimizer.state.clear()
        for where, value in state["optimizer"].items():
            name, _, key = where.rpartition("|")
            optimizer.state[wanted[name]][key] = value
        for where, kept in known.items():
            name, bar, key = where.rpartition("|")
            if not bar:
                continue
            parameter = wanted[name]
            like = parameter.detach() if kept.size == parameter.shape else torch.empty(kept.size, device=parameter.device)
            part = torch.empty_like(like, dtype=kept.properties.dtype)
            parts[where] = optimizer.state[parameter][key] = part
    load(parts, storage_reader=reader)


def weights_fingerprint(state: Mapping[str, Any]) -> str:
    """Return a hash of a checkpoint's weights (of one in shards, of its moments too)."""
    hashes = state["sha256"]
    return hashes[MODEL] if MODEL in hashes else sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def load_moments(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the optimizer kept for every parameter, by the parameter's name: tensors and numbers by key."""
    state = read_state(folder)
    found: dict[str, dict[str, Any]] = {}
    for where, value in {**_read(folder, OPTIMIZER, state), **state["optimizer"]}.items():
        name, _, key = where.rpartition("|")
        found.setdefault(name, {})[key] = value
    return found


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by parameter name."""
    return _read(folder, MODEL, read_state(folder))


def latest(folder: Path) -> Path | None:
    """Return a run's newest checkpoint, if any: the final one, else that of the last step."""
    return next(iter(_newest_first(folder)), None)


def _newest_first(folder: Path) -> list[Path]:
    final = folder / FINAL
    return [*([final] if final.is_dir() else []), *sorted(folder.glob("step-*"), reverse=True)]


def _is_split(parameter: Tensor) -> bool:
    """Whether it is a DTensor, whose package takes long to import."""
    return hasattr(parameter, "device_mesh")


def named(model: nn.Module) -> list[tuple[str, Tensor]]:
    kept = model.kept if isinstance(model, System) else set(model.state_dict())
    return [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in kept)]


def _check_hash(folder: Path, name: str, state: Mapping[str, Any]) -> None:
    try:
        with (folder / name).open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
    except _GONE as e:
        raise DataError(f"the checkpoint {folder} lacks {name} ({e.strerror}); {_REMEDY}") from None
    if found != state["sha256"][name]:
        raise DataError(f"{folder / name} was altered or cut since it was written; {_REMEDY}")


def _read(folder: Path, name: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    if name in state["sha256"]:
        _check_hash(folder, name, state)
        return load((folder / name).read_bytes())
    for shard in state["sha256"]:
        _check_hash(folder, shard, state)
    return _joined(folder, moments=name == OPTIMIZER)


def _joined(folder: Path, *, moments: bool) -> dict[str, Tensor]:
    """Return the weights, or the moments, of a checkpoint in shards: every tensor whole."""
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts

    reader, known = _shards(folder)
    tensors = {n: torch.empty(m.size, dtype=m.properties.dtype) for n, m in known.items() if ("|" in n) == moments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that this process reads alone, which is meant
        load_parts(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _shards(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return a reader of a checkpoint's tensor files, and what is in them: sizes and number types by name."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    reader = HuggingFaceStorageReader(str(folder))
    return reader, dict(reader.read_metadata().state_dict_metadata)


def flatten(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what the optimizer keeps, as tensors and as numbers, by parameter name | key."""
    names = {id(p): n for n, p in model.named_parameters()}
    tensors, numbers = {}, {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            where = f"{names[id(parameter)]}|{key}"
            if isinstance(value, Tensor):
                tensors[where] = value.detach().contiguous()
            else:
                numbers[where] = value
    return tensors, numbers


def fill_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Mapping[str, Any]]) -> None:
    """Give an optimizer its moments, by the names of the model's parameters; what it had for others is dropped."""
    parameters: dict[str, Any] = dict(model.named_parameters())
    on_device = {p: bool(g.get("fused") or g.get("capturable")) for g in optimizer.param_groups for p in g["params"]}
    optimizer.state.clear()
    for name, values in moments.items():
        parameter = parameters[name]
        for key, value in values.items():
            beside = isinstance(value, Tensor) and (value.ndim > 0 or on_device[parameter])
            moved = value.to(parameter.device) if beside else value
            if _is_split(parameter) and isinstance(value, Tensor) and value.ndim:
                from torch.distributed.tensor import distribute_tensor

                moved = distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
            optimizer.state[parameter][key] = moved
