"""A model where it computes: on its device, its blocks compiled, recomputed, or split over ranks, as the machine says.

Split (FSDP2): each rank of a group keeps its part of every weight, gradient and moment. A block's weights are gathered when the
block runs and let go after it; its gradients are summed as they come, each rank keeping its part. With several groups (HSDP)
parts are summed over groups as well. In mixed precision blocks are gathered in bfloat16 and gradients summed in float32.
Papers: Rajbhandari et al. (2020), "ZeRO"; Zhao et al. (2023), "PyTorch FSDP"; Chen et al. (2016), "Training deep nets with
sublinear memory cost".
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seedbed.engine.precision import Machine
from seedbed.engine.system import System


def place(system: System, machine: Machine) -> None:
    """Bring a system to its machine, in place. If it is split its parameters are others now: build the optimizer then."""
    for block in system.model.blocks:
        if machine.compiled:
            block.forward = torch.compile(block.forward)
        if machine.recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if machine.shards == 1:
        system.to(machine.device)
    else:
        _split(system, machine)


def _split(system: System, machine: Machine) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    groups = machine.ranks.size // machine.shards
    shape = (machine.shards,) if groups == 1 else (groups, machine.shards)
    names = ("shard",) if groups == 1 else ("replicate", "shard")
    mesh = init_device_mesh(machine.device.type, shape, mesh_dim_names=names)
    number_type = torch.bfloat16 if machine.bfloat16 else None
    policy = MixedPrecisionPolicy(param_dtype=number_type, reduce_dtype=torch.float32, cast_forward_inputs=False)
    blocks = list(system.model.blocks)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    for module in system.modules_alone:
        fully_shard(module, mesh=mesh)
    for module in (*blocks, *system.modules_alone):
        module.set_gradient_divide_factor(1.0)  # a step's loss is divided by the count of all ranks: gradients are summed
        module.set_force_sum_reduction_for_comms(True)


def is_split(system: System) -> bool:
    return hasattr(system.model, "set_requires_gradient_sync")


def _split_modules(system: System) -> list[Any]:
    return [*system.modules_alone]


def before_backward(system: System, *, last: bool) -> None:
    """Have gradients of a split system summed over ranks with the step's last micro-batch only."""
    if is_split(system):
        for module in _split_modules(system):
            module.set_requires_gradient_sync(last)


@contextmanager
def reading(system: System, machine: Machine) -> Iterator[None]:
    """Let a model be read between steps; a split one by all ranks together, in the number type of its training.

    Afterwards weights that a forward pass has left gathered are let go, so that parameters are parts again.
    """
    with machine.autocast() if is_split(system) else nullcontext():
        yield
    if is_split(system):
        for module in _split_modules(system):
            module.reshard()


def whole(value: Tensor) -> Tensor:
    """Return a tensor as one, where every rank has a part (all ranks call this)."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
