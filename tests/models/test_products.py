"""Products by oneDNN: the same numbers, as often differentiable, and everywhere else torch's own."""

import pytest
import torch
import torch.nn.functional as F

from seedbed.models import products as module
from seedbed.models.products import Linear, linear, product, suits


@pytest.fixture(params=["onednn", "blas"])
def chosen(request, monkeypatch):
    if request.param == "onednn" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(module, "LIBRARY", request.param)
    return request.param


def test_the_maker_of_the_processor_decides(monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    for maker, expected in (("AuthenticAMD", "onednn"), ("GenuineIntel", "blas"), ("unknown", "blas")):
        monkeypatch.setattr(module, "_maker", lambda maker=maker: maker)
        assert module._library() == expected


@pytest.mark.parametrize(("m", "k", "n"), [(5, 3, 4), (64, 32, 96), (1, 8, 8), (33, 17, 1)])
def test_products_of_any_layout_are_exact_to_rounding(chosen, m, k, n):
    torch.manual_seed(0)
    a, b = torch.randn(m, k), torch.randn(k, n)
    exact = (a.double() @ b.double()).float()
    for left in (a, a.t().contiguous().t()):
        for right in (b, b.t().contiguous().t()):
            torch.testing.assert_close(product(left, right), exact, rtol=1e-5, atol=1e-5)


def test_a_linear_layer_and_its_gradients_are_torch_s_to_rounding(chosen):
    torch.manual_seed(0)
    layer, states = Linear(12, 20), torch.randn(3, 7, 12, requires_grad=True)
    mine = layer(states)
    asked = [states, layer.weight, layer.bias]
    direction = torch.randn_like(mine)
    found = torch.autograd.grad(mine, asked, direction)
    theirs = F.linear(states, layer.weight, layer.bias)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    for a, b in zip(found, torch.autograd.grad(theirs, asked, direction), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert a.is_contiguous(), "the optimizer would copy it"


def test_gradients_of_gradients_pass(chosen):
    torch.manual_seed(0)
    states, weight = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)

    def second(multiply):
        (d,) = torch.autograd.grad(multiply(states, weight).pow(3).sum(), weight, create_graph=True)
        return torch.autograd.grad(d.pow(2).sum(), [states, weight])

    for a, b in zip(second(linear), second(F.linear), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)


def test_only_what_asks_for_a_gradient_gets_one(chosen):
    states, weight = torch.randn(6, 4), torch.randn(5, 4, requires_grad=True)
    linear(states, weight).sum().backward()
    assert states.grad is None and weight.grad is not None


def test_other_numbers_and_nothing_at_all_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(module, "LIBRARY", "onednn")
    assert not suits(torch.ones(2, 2, dtype=torch.float64)) and not suits(torch.ones(2, 2, dtype=torch.bfloat16))
    assert not suits(torch.ones(0, 3)) and linear(torch.ones(0, 3), torch.ones(4, 3)).shape == (0, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == torch.bfloat16
