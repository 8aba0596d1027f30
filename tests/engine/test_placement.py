"""Placing a model changes where and how its blocks compute, not what."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seedbed.engine.placement import place
from seedbed.engine.precision import Machine
from seedbed.optimizers.adamw import AdamW
from tests.engine.split_worker import RATE, built, trained

CPU = {"device": torch.device("cpu"), "bfloat16": False, "threads": 1}


def _losses(machine):
    stage, usual = built(micro=2)
    place(stage.system, machine)
    return [loss for loss, *_ in trained(stage, usual)], stage.model


def test_states_that_are_made_again_change_nothing_to_the_bit_and_are_not_kept():
    plain, model = _losses(Machine(**CPU))
    again, other = _losses(Machine(**CPU, recompute=True))
    assert plain == again

    def kept(net):
        sizes = {}

        def pack(x):
            sizes[x.data_ptr()] = x.numel()
            return x

        hidden = torch.randn(4, 24, 16, requires_grad=True)
        rotation = net.rotation(torch.arange(24)[None])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            net.blocks[0](hidden, rotation=rotation, mask=None).sum()
        return sum(sizes.values())

    assert kept(other) < kept(model) / 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a processor needs a C++ compiler")
def test_compiled_blocks_change_losses_by_rounding_only():
    """In a process of its own: the checks of shapes that tests switch on cannot be compiled."""
    code = (
        "import json; from tests.engine.test_placement import CPU, Machine, _losses; "
        "print(json.dumps([_losses(Machine(**CPU, compiled=c))[0] for c in (False, True)]))"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    plain, compiled = json.loads(done.stdout.splitlines()[-1])
    assert compiled == pytest.approx(plain, rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("settings", [{}, {"compiled": True}, {"recompute": True}, {"compiled": True, "recompute": True}])
def test_on_a_gpu_every_way_gives_the_processor_s_losses(settings):
    """In float32, rows fetched from pinned memory; other kernels, other rounding."""
    alone, _ = _losses(Machine(**CPU))
    stage, _ = built(micro=2)
    machine = Machine(device=torch.device("cuda"), bfloat16=False, threads=1, **settings)
    place(stage.system, machine)
    trained_there = [(stage.model.roles[n], p) for n, p in stage.model.named_parameters()]
    stage = replace(stage, optimizer=AdamW(learning_rate=RATE, weight_decay=0.1).build(trained_there))
    assert [loss for loss, *_ in trained(stage, machine)] == pytest.approx(alone, rel=1e-3)
