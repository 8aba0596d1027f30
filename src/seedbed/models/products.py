"""Matrix products in float32 on a processor, by the library that is fast on it.

torch multiplies float32 matrices with MKL, which keeps its fast kernels for Intel's processors. oneDNN, which torch brings
along, has them for all: on an AMD EPYC it was 2.1x as fast in the median (benchmarks/products.py, docs/scale.md). The maker of
the processor decides, never a timing, so that a run that goes on makes the same choice; env.json records it.
Letters: M, K, N rows and columns; B rows, T positions.
"""

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ONEDNN, BLAS = "onednn", "blas"


def _library() -> str:
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return ONEDNN if there and _maker() == "AuthenticAMD" else BLAS


def _maker() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id"))
    except (OSError, StopIteration):
        return "AuthenticAMD" if "AuthenticAMD" in platform.processor() else "unknown"  # Windows says it there


# what multiplies float32 matrices on this processor: oneDNN on AMD's, where torch has it, else torch's BLAS
LIBRARY = _library()


def product(a_MK: Float[Tensor, "M K"], b_KN: Float[Tensor, "K N"]) -> Float[Tensor, "M N"]:
    """Return a @ b; gradients do not pass (see `Linear`)."""
    if suits(a_MK) and suits(b_KN):
        return _opaque(a_MK, b_KN) if torch.compiler.is_compiling() else _by_onednn(a_MK, b_KN)
    return torch.mm(a_MK, b_KN)


def _by_onednn(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_KN.t(), None, "none", [], "")
    return made


@torch.library.custom_op("seedbed::product", mutates_args=())
def _opaque(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """The same for compiled blocks, which do not look inside."""
    return _by_onednn(a_MK, b_KN)


@_opaque.register_fake
def _(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    return a_MK.new_empty(a_MK.shape[0], b_KN.shape[1])


def suits(values: Tensor) -> bool:
    """Whether oneDNN is to multiply it."""
    return values.device.type == "cpu" and values.dtype == torch.float32 and values.numel() > 0 and LIBRARY == ONEDNN


class Linear(nn.Linear):
    """torch's linear layer, by `product` where that is faster; as often differentiable as one likes."""

    def forward(self, states: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        return linear(states, self.weight, self.bias)


def linear(states: Float[Tensor, "*rows in"], weight: Tensor, bias: Tensor | None = None) -> Float[Tensor, "*rows out"]:
    """Return states @ weight.T + bias."""
    if not (suits(states) and suits(weight)) or torch.is_autocast_enabled("cpu"):
        return F.linear(states, weight, bias)
    made: Tensor = _Linear.apply(states.flatten(0, -2), weight)
    made = made.view(*states.shape[:-1], len(weight))
    return made if bias is None else made + bias


class _Linear(torch.autograd.Function):
    """a @ b.T; whatever its gradients are made of is one as well.

    oneDNN copies a first factor that is turned, so of the two ways to the weight's gradient the one that copies less is taken.
    """

    @staticmethod
    def forward(ctx: Any, a_MK: Tensor, b_NK: Tensor) -> Tensor:
        ctx.save_for_backward(a_MK, b_NK)
        return product(a_MK, b_NK.t())

    @staticmethod
    def backward(ctx: Any, d_MN: Tensor) -> Any:
        a_MK, b_NK = ctx.saved_tensors
        d_a = _product(d_MN, b_NK) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return d_a, None
        (m, n), k = d_MN.shape, a_MK.shape[1]
        return d_a, _product(a_MK.t(), d_MN).t() if m * k + n * k < m * n else _product(d_MN.t(), a_MK)


def _product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    made: Tensor = _Linear.apply(a_MK, b_KN.t()) if torch.is_grad_enabled() else product(a_MK, b_KN)
    return made
