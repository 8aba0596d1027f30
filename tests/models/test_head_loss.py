import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from seedbed.models import head_loss as module
from seedbed.models.head_loss import Head, Targets, Teacher, head_loss, logprobs, plain_loss, ranks, top

N, D, V, K = 23, 8, 37, 3


def _draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def _ids(*shape, seed=0):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def _asked(kind):
    weights_N = _draw(N, seed=5).abs()
    weights_N[3] = 0.0
    kinds = {
        "ids": {"ids_N": _ids(N)},
        "smoothing": {"ids_N": _ids(N), "smoothing": 0.1},
        "z": {"ids_N": _ids(N), "z_weight": 0.3},
        "top": {
            "top_ids_NK": torch.stack([_ids(N), (_ids(N) + 1) % V, (_ids(N) + 2) % V], 1),
            "top_probs_NK": _draw(N, K).abs() / 4,
        },
        "probs": {"probs_NV": _draw(N, V).softmax(-1)},
        "probs at a temperature": {"probs_NV": _draw(N, V).softmax(-1), "temperature": 2.0},
        "teacher": {"teacher": Teacher(states_ND=_draw(N, 5, seed=8), head=Head(weight_VD=_draw(V, 5, seed=9)))},
        "teacher at a temperature, with z": {
            "teacher": Teacher(states_ND=_draw(N, 5, seed=8), head=Head(weight_VD=_draw(V, 5, seed=9))),
            "temperature": 3.0,
            "z_weight": 0.2,
        },
    }
    return Targets(weights_N=weights_N, **kinds[kind])


KINDS = ["ids", "smoothing", "z", "top", "probs", "probs at a temperature", "teacher", "teacher at a temperature, with z"]


def _inputs(bias):
    states, weight = _draw(N, D, seed=1).requires_grad_(), _draw(V, D, seed=2).requires_grad_()
    return states, weight, _draw(V, seed=3).requires_grad_() if bias else None


def _with_gradients(function, inputs, targets):
    states, weight, bias = inputs
    total, each = function(states, Head(weight_VD=weight, bias_V=bias), targets)
    wanted = [x for x in inputs if x is not None]
    return total, each, torch.autograd.grad(total * 0.7, wanted)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_chunks_give_the_loss_and_gradients_of_full_logits(monkeypatch, kind, bias, rows):
    monkeypatch.setattr(module, "CHUNK", rows * V)
    inputs, targets = _inputs(bias), _asked(kind)
    found, wanted = (_with_gradients(f, inputs, targets) for f in (head_loss, plain_loss))
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(found[2], wanted[2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_plain_path_is_torch_s_cross_entropy_and_twice_differentiable():
    states, weight, _ = _inputs(False)
    targets = _asked("smoothing")
    logits = states @ weight.t()
    each = F.cross_entropy(logits, targets.ids_N, reduction="none", label_smoothing=0.1)
    total, _ = plain_loss(states, Head(weight_VD=weight), targets)
    torch.testing.assert_close(total, (each * targets.weights_N).sum())
    small = [x[:4].double().detach().requires_grad_() for x in (states, weight)]
    few = Targets(weights_N=torch.ones(4).double(), ids_N=torch.tensor([0, 1, 2, 3]), z_weight=0.1)

    assert gradcheck(lambda s, w: plain_loss(s, Head(weight_VD=w), few)[0], small)
    assert gradgradcheck(lambda s, w: plain_loss(s, Head(weight_VD=w), few)[0], small)
    assert gradcheck(lambda s, w: head_loss(s, Head(weight_VD=w), few)[0], small)


def test_a_teacher_s_logits_are_its_own_and_get_no_gradient():
    head = Head(weight_VD=_draw(V, 5, seed=9).requires_grad_())
    targets = Targets(weights_N=torch.ones(N), teacher=Teacher(states_ND=_draw(N, 5, seed=8), head=head))
    states, weight, _ = _inputs(False)
    head_loss(states, Head(weight_VD=weight), targets)[0].backward()
    assert head.weight_VD.grad is None and weight.grad is not None


def test_nothing_asked_is_zero_with_zero_gradients():
    states, weight = torch.zeros(0, D, requires_grad=True), _draw(V, D).requires_grad_()
    total, each = head_loss(
        states, Head(weight_VD=weight), Targets(weights_N=torch.zeros(0), ids_N=torch.zeros(0, dtype=torch.long))
    )
    total.backward()
    assert total == 0 and each.shape == (0,) and not weight.grad.any()


def test_the_full_matrix_of_logits_never_exists():
    """The largest tensor that is made on the way holds one chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else [out]:
                if isinstance(value, torch.Tensor):
                    Largest.size = max(Largest.size, value.numel())
            return out

    rows, vocabulary = 4096, 8192
    states, weight = _draw(rows, 4).requires_grad_(), _draw(vocabulary, 4).requires_grad_()
    targets = Targets(weights_N=torch.ones(rows), ids_N=torch.arange(rows))
    with Largest():
        head_loss(states, Head(weight_VD=weight), targets)[0].backward()
    assert Largest.size <= module.CHUNK < rows * vocabulary


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_what_is_read_off_the_head_is_that_of_full_logits(monkeypatch, rows):
    monkeypatch.setattr(module, "CHUNK", rows * V)
    states, weight, bias = _inputs(True)
    head, ids = Head(weight_VD=weight, bias_V=bias), torch.stack([_ids(N), _ids(N, seed=4)], 1)
    full = F.linear(states, weight, bias).log_softmax(-1)
    wanted = full.gather(-1, ids)
    found = logprobs(states, head, ids)
    torch.testing.assert_close(found, wanted)
    each = _draw(N, 2, seed=6)
    for mine, theirs in zip(
        torch.autograd.grad((found * each).sum(), (states, weight, bias)),
        torch.autograd.grad((wanted * each).sum(), (states, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    likelier = (full > full.gather(-1, ids[:, :1])).sum(-1)
    assert torch.equal(ranks(states, head, ids[:, 0]), likelier)
    best_ids, best = top(states, head, k=3)
    torch.testing.assert_close(best, full.topk(3).values)
    assert torch.equal(ranks(states, head, best_ids[:, 2]), torch.full((N,), 2))
    nothing = states[:0]
    assert logprobs(nothing, head, ids[:0]).shape == (0, 2) and top(nothing, head, k=3)[0].shape == (0, 3)
    assert ranks(nothing, head, ids[:0, 0]).shape == (0,)


def test_without_gradients_none_are_made(monkeypatch):
    wanted = []
    real = module._chunk
    monkeypatch.setattr(module, "_chunk", lambda *given, **named: wanted.append(named["wanted"]) or real(*given, **named))
    states, weight, bias = _inputs(True)
    targets = _asked("ids")
    with torch.no_grad():
        head_loss(states, Head(weight_VD=weight, bias_V=bias), targets)
    head_loss(states, Head(weight_VD=weight, bias_V=bias), targets)
    assert wanted == [False, True]
