"""Checkpoints: a folder with model.safetensors, optimizer.safetensors and state.json, whole or absent, never a pickle.

state.json carries the SHA-256 of both tensor files, so a flipped bit or a truncated file is found when it is opened.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from seedbed.core.durable import whole_folder
from seedbed.core.errors import DataError

FORMAT = 1


def save_checkpoint(folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; a crash on the way leaves nothing that looks like one."""
    moments, numbers = _flatten(model, optimizer)
    files = {
        "model.safetensors": save({name: p.detach().contiguous() for name, p in _named(model)}),
        "optimizer.safetensors": save(moments),
    }
    content = {
        "format": FORMAT,
        "sha256": {name: sha256(raw).hexdigest() for name, raw in files.items()},
        "optimizer": numbers,
        **state,
    }
    with whole_folder(folder) as temporary:
        for name, raw in files.items():
            (temporary / name).write_bytes(raw)
        (temporary / "state.json").write_text(json.dumps(content, indent=1))


def read_state(folder: Path) -> dict[str, Any]:
    """Return state.json. Raises DataError if it is missing or broken."""
    try:
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError) as e:
        raise DataError(f"the checkpoint {folder} cannot be read: {e}; start the run again") from None
    if state.get("format") != FORMAT:
        raise DataError(f"the checkpoint {folder} has format {state.get('format')}, this version reads {FORMAT}")
    return state


def load_checkpoint(folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fill model (and optimizer) from a checkpoint and return its state.

    Raises DataError if a file is missing, altered or does not fit the model.
    """
    state = read_state(folder)
    weights = _read(folder, "model.safetensors", state)
    wanted = dict(_named(model))
    if set(weights) != set(wanted):
        odd = sorted(set(weights) ^ set(wanted))
        raise DataError(f"the checkpoint {folder} does not fit this model: {', '.join(odd[:4])} on one side only")
    misfits = [n for n in wanted if wanted[n].shape != weights[n].shape]
    if misfits:
        raise DataError(f"the checkpoint {folder} does not fit this model: {', '.join(misfits[:4])} have other shapes")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])
    if optimizer is not None:
        _unflatten(model, optimizer, _read(folder, "optimizer.safetensors", state), state["optimizer"])
    return state


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by parameter name."""
    return _read(folder, "model.safetensors", read_state(folder))


def latest(folder: Path) -> Path | None:
    """Return a run's newest checkpoint, if any: the final one, else that of the last step."""
    final = folder / "final"
    return final if final.is_dir() else max(folder.glob("step-*"), default=None)


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in model.state_dict())]


def _read(folder: Path, name: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        raw = (folder / name).read_bytes()
    except OSError as e:
        raise DataError(f"the checkpoint {folder} lacks {name} ({e.strerror}); start the run again") from None
    if sha256(raw).hexdigest() != state["sha256"][name]:
        raise DataError(f"{folder / name} was altered or cut since it was written; start the run again")
    return load(raw)


def _flatten(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
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


def _unflatten(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    parameters = dict(model.named_parameters())
    on_device = {p: bool(g.get("fused") or g.get("capturable")) for g in optimizer.param_groups for p in g["params"]}
    optimizer.state.clear()
    for where, value in {**tensors, **numbers}.items():
        name, _, key = where.rpartition("|")
        parameter = parameters[name]
        beside = isinstance(value, Tensor) and (value.ndim > 0 or on_device[parameter])
        moved = value.to(parameter.device) if beside else value
        optimizer.state[parameter][key] = moved
