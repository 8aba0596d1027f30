import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from seedbed.core.errors import ConfigError
from seedbed.models import head_loss as module
from seedbed.models.head_loss import Few, Head, Targets, Whole, head_loss, logprobs, plain_logprobs, plain_loss, top

N, D, V, K = 23, 8, 37, 3


def _draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def _ids(*shape, seed=0):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def _asked(kind, *, double=False):
    """What is asked, and the same as a function of full log-probabilities and lse: each position's loss, by its definition."""
    weights_N, ids_N = _draw(N, seed=5).abs() + 0.1, _ids(N)
    share_N = torch.rand(N, generator=torch.Generator().manual_seed(6))
    few_NK, few_probs_NK = torch.stack([_ids(N), (_ids(N) + 1) % V, (_ids(N) + 2) % V], 1), _draw(N, K).abs() / 4
    probs_NV = _draw(N, V, seed=7).softmax(-1)
    if double:
        weights_N, share_N, few_probs_NK, probs_NV = (x.double() for x in (weights_N, share_N, few_probs_NK, probs_NV))
    few = {"soft": lambda part: Few(ids_CK=few_NK[part], probs_CK=few_probs_NK[part]), "share_N": share_N}
    whole = {"soft": lambda part: Whole(probs_CV=probs_NV[part]), "share_N": share_N}
    settings = {
        "ids": {},
        "smoothing": {"smoothing": 0.1},
        "z": {"z_weight": 0.3},
        "few": few,
        "whole": whole,
        "only whole": whole | {"share_N": torch.ones_like(share_N)},
        "everything, few": few | {"smoothing": 0.2, "z_weight": 0.1, "rank": True},
        "everything, whole": whole | {"smoothing": 0.2, "z_weight": 0.1, "rank": True},
    }[kind]

    def by_definition(logp_NV, lse_N):
        s, z = settings.get("smoothing", 0.0), settings.get("z_weight", 0.0)
        q_NV = (1 - s) * F.one_hot(ids_N, V).double() + s / V
        if "soft" in settings:
            soft_NV = torch.zeros(N, V).double().scatter_add(-1, few_NK, few_probs_NK.double())
            soft_NV = probs_NV.double() if "whole" in kind else soft_NV
            share_N1 = settings["share_N"][:, None].double()
            q_NV = (1 - share_N1) * q_NV + share_N1 * soft_NV
        return weights_N.double() * (z * lse_N**2 - (q_NV * logp_NV).sum(-1))

    return Targets(ids_N=ids_N, weights_N=weights_N, **settings), by_definition


KINDS = ["ids", "smoothing", "z", "few", "whole", "only whole", "everything, few", "everything, whole"]


def _inputs(bias):
    states, weight = _draw(N, D, seed=1).requires_grad_(), _draw(V, D, seed=2).requires_grad_()
    return states, weight, _draw(V, seed=3).requires_grad_() if bias else None


def _leaves(states, weight, bias):
    return [x for x in (states, weight, bias) if x is not None]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("function", "rows"), [(head_loss, 1), (head_loss, 5), (head_loss, 1000), (plain_loss, 1)])
def test_loss_and_gradients_are_those_of_the_definition_in_float64(monkeypatch, function, kind, bias, rows):
    monkeypatch.setattr(module, "chunk_rows", lambda positions, **_: max(1, min(positions, rows)))
    inputs, (targets, by_definition) = _inputs(bias), _asked(kind)
    states, weight, b = inputs
    found = function(states, Head(weight_VD=weight, bias_V=b), targets)
    exact = [x.detach().double().requires_grad_() for x in _leaves(*inputs)]
    logits_NV = F.linear(*exact)
    logp_NV, lse_N = logits_NV.log_softmax(-1), logits_NV.logsumexp(-1)
    total = by_definition(logp_NV, lse_N).sum()
    hard_N1 = targets.ids_N[:, None]
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.sum_nats.double(), total, **close)
    torch.testing.assert_close(found.nll_N.double(), -logp_NV.gather(-1, hard_N1)[:, 0], **close)
    torch.testing.assert_close(found.lse_N.double(), lse_N, **close)
    ranks_N = (logits_NV > logits_NV.gather(-1, hard_N1)).sum(-1)
    assert found.rank_N is None if not targets.rank else torch.equal(found.rank_N, ranks_N)
    mine, theirs = torch.autograd.grad(found.sum_nats * 0.7, _leaves(*inputs)), torch.autograd.grad(total * 0.7, exact)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5)
    assert not any(x.requires_grad for x in (found.nll_N, found.lse_N))


@pytest.fixture
def few_numbers(monkeypatch):
    """Derivatives are held against finite differences number by number, so a few do."""
    for name, size in {"N": 5, "D": 3, "V": 7}.items():
        monkeypatch.setitem(globals(), name, size)


@pytest.mark.usefixtures("few_numbers")
@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_path_is_twice_differentiable_and_the_chunked_one_once(kind):
    states, weight, bias = (x.detach().double().requires_grad_() for x in _inputs(True))
    targets, _ = _asked(kind, double=True)

    def loss(function):
        return lambda s, w, b: function(s, Head(weight_VD=w, bias_V=b), targets).sum_nats

    assert gradcheck(loss(head_loss), (states, weight, bias))
    assert gradgradcheck(loss(plain_loss), (states, weight, bias))
    with pytest.raises(ConfigError, match="ask for plain=True"):
        torch.autograd.grad(loss(head_loss)(states, weight, bias), states, create_graph=True)


def test_a_second_backward_pass_gives_the_same():
    states, weight, _ = _inputs(False)
    total = head_loss(states, Head(weight_VD=weight), _asked("z")[0]).sum_nats
    once, again = (torch.autograd.grad(total, (states, weight), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_nothing_asked_is_zero_with_zero_gradients():
    states, weight = torch.zeros(0, D, requires_grad=True), _draw(V, D).requires_grad_()
    none = Targets(weights_N=torch.zeros(0), ids_N=torch.zeros(0, dtype=torch.long), rank=True)
    found = head_loss(states, Head(weight_VD=weight), none)
    found.sum_nats.backward()
    assert found.sum_nats == 0 and found.nll_N.shape == found.rank_N.shape == (0,) and not weight.grad.any()


def test_large_logits_overflow_nowhere():
    states, weight = torch.tensor([[300.0], [-300.0]]).requires_grad_(), torch.tensor([[1.0], [0.0], [-1.0]])
    found = head_loss(states, Head(weight_VD=weight), Targets(ids_N=torch.tensor([2, 2]), weights_N=torch.ones(2)))
    assert found.nll_N.tolist() == [600.0, 0.0] and found.lse_N.tolist() == [300.0, 300.0]
    assert torch.autograd.grad(found.sum_nats, states)[0].tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_what_is_read_off_the_head_is_that_of_full_logits(monkeypatch, rows):
    monkeypatch.setattr(module, "chunk_rows", lambda positions, **_: max(1, min(positions, rows)))
    inputs = _inputs(True)
    states, weight, bias = inputs
    head, ids_NK = Head(weight_VD=weight, bias_V=bias), torch.stack([_ids(N), _ids(N, seed=4)], 1)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    full_NV = F.linear(*exact).log_softmax(-1)
    wanted_NK, each_NK = full_NV.gather(-1, ids_NK), _draw(N, 2, seed=6)
    theirs = torch.autograd.grad((wanted_NK * each_NK).sum(), exact)
    for function in (logprobs, plain_logprobs):
        found_NK = function(states, head, ids_NK)
        torch.testing.assert_close(found_NK.double(), wanted_NK, rtol=1e-5, atol=1e-5)
        for one, other in zip(torch.autograd.grad((found_NK * each_NK).sum(), inputs), theirs, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5)
    best_ids_NK, best_NK = top(states, head, k=3)
    torch.testing.assert_close(best_NK.double(), full_NV.topk(3).values.exp(), rtol=1e-5, atol=1e-6)
    assert torch.equal(best_ids_NK, full_NV.topk(3).indices)
    nothing = states[:0]
    assert logprobs(nothing, head, ids_NK[:0]).shape == (0, 2) and top(nothing, head, k=3)[0].shape == (0, 3)


@pytest.mark.usefixtures("few_numbers")
def test_log_probabilities_are_differentiable_once_in_chunks_and_twice_plainly():
    inputs = [x.detach().double().requires_grad_() for x in _inputs(True)]
    ids_NK = torch.stack([_ids(N), _ids(N, seed=4)], 1)
    assert gradcheck(lambda s, w, b: logprobs(s, Head(weight_VD=w, bias_V=b), ids_NK), inputs)
    assert gradgradcheck(lambda s, w, b: plain_logprobs(s, Head(weight_VD=w, bias_V=b), ids_NK), inputs)


def test_without_gradients_none_are_made(monkeypatch):
    made = []
    monkeypatch.setattr(module._Parts, "to_gradient", lambda *_: made.append("gradient"))
    states, weight, bias = _inputs(True)
    targets, _ = _asked("ids")
    with torch.no_grad():
        head_loss(states, Head(weight_VD=weight, bias_V=bias), targets)
    assert made == []
    head_loss(states, Head(weight_VD=weight, bias_V=bias), targets)
    assert made == ["gradient"]
