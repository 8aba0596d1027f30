import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from seedbed.core import protocols
from seedbed.core.errors import ConfigError
from seedbed.core.records import Batch, Teacher, TokenTargets, TopK
from seedbed.models import head_loss, products
from seedbed.models.decoder import Decoder
from seedbed.models.outputs import Outputs
from seedbed.objectives.tokens import Tokens

B, T, D, V, K = 3, 7, 6, 19, 4


def _draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _ids(*shape, seed=0, below=V):
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def _outputs(*, width=D, seed=0, dtype=torch.float32, shape=(B, T), ids=V):
    head = nn.Linear(width, ids, bias=False)
    head.weight = nn.Parameter(_draw(ids, width, seed=seed + 50).to(dtype))
    return Outputs(hidden_BTD=_draw(*shape, width, seed=seed).to(dtype).requires_grad_(), head=head)


def _weights(counted):
    weights_BT = _draw(B, T, seed=3).abs() + 0.1
    if counted == "some":
        weights_BT[_ids(B, T, seed=4, below=3) == 0] = 0
    return weights_BT * 0 if counted == "none" else weights_BT


def _soft(kind):
    """Soft targets of a kind, and the whole distributions that they stand for."""
    if kind == "top":
        few = TopK(ids_BTK=_ids(B, T, K, seed=5), probs_BTK=_draw(B, T, K, seed=6).softmax(-1) * 0.8)
        return few, torch.zeros(B, T, V).scatter_add(-1, few.ids_BTK, few.probs_BTK)  # an id may come twice
    if kind == "teacher":
        teacher = _outputs(width=9, seed=7)
        probs_BTV = F.linear(teacher.hidden_BTD, teacher.head.weight).detach().double().softmax(-1)
        return Teacher(outputs=teacher, exponent=0.25), probs_BTV**0.25 / (probs_BTV**0.25).sum(-1, keepdim=True)
    probs_BTV = _draw(B, T, V, seed=8).softmax(-1)
    return probs_BTV, probs_BTV


def _by_definition(logits_BTV, targets, soft_BTV):
    """Each position's weighted loss, from full logits."""
    logp_BTV, log_z_BT = logits_BTV.log_softmax(-1), logits_BTV.logsumexp(-1)
    q_BTV = (1 - targets.smoothing) * F.one_hot(targets.ids_BT, V).double() + targets.smoothing / V
    if soft_BTV is not None:
        share = torch.as_tensor(targets.soft_share_BT).double()[..., None]
        q_BTV = (1 - share) * q_BTV + share * soft_BTV.double()
    return targets.weights_BT.double() * (targets.z_weight * log_z_BT**2 - (q_BTV * logp_BTV).sum(-1))


@pytest.mark.parametrize("counted", ["all", "some", "none"])
@pytest.mark.parametrize("kind", [None, "top", "teacher", "array"])
@pytest.mark.parametrize("plain", [False, True])
def test_a_token_loss_is_what_full_logits_give_in_float64(monkeypatch, kind, counted, plain):
    monkeypatch.setattr(head_loss, "chunk_rows", lambda positions, **_: max(1, min(positions, 4)))
    outputs, weights_BT = _outputs(), _weights(counted)
    soft, soft_BTV = (None, None) if kind is None else _soft(kind)
    share_BT = torch.rand(B, T, generator=torch.Generator().manual_seed(9))
    targets = TokenTargets(
        ids_BT=_ids(B, T, seed=2),
        weights_BT=weights_BT,
        soft=soft,
        soft_share_BT=share_BT,
        smoothing=0.1,
        z_weight=0.05,
        rank=True,
        log_z=True,
    )
    loss = outputs.token_loss(targets, plain=plain)
    hidden, weight = (x.detach().double().requires_grad_() for x in (outputs.hidden_BTD, outputs.head.weight))
    logits_BTV = F.linear(hidden, weight)
    total = _by_definition(logits_BTV, targets, soft_BTV).sum()
    asked_BT, ids_BT1 = weights_BT > 0, targets.ids_BT[..., None]
    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(loss.sum_nats, total, **close)
    torch.testing.assert_close(loss.nll_BT, -logits_BTV.log_softmax(-1).gather(-1, ids_BT1)[..., 0] * asked_BT, **close)
    torch.testing.assert_close(loss.log_z_BT, logits_BTV.logsumexp(-1) * asked_BT, **close)
    ranks_BT = (logits_BTV > logits_BTV.gather(-1, ids_BT1)).sum(-1)
    assert torch.equal(loss.rank_BT, ranks_BT.where(asked_BT, -1))
    assert not (loss.nll_BT.requires_grad or loss.log_z_BT.requires_grad)
    mine = torch.autograd.grad(loss.sum_nats, (outputs.hidden_BTD, outputs.head.weight))
    for one, other in zip(mine, torch.autograd.grad(total, (hidden, weight)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5, check_dtype=False)


def test_what_is_not_asked_for_is_not_made():
    targets = TokenTargets(ids_BT=_ids(B, T), weights_BT=torch.ones(B, T))
    loss = _outputs().token_loss(targets)
    assert loss.rank_BT is None and loss.log_z_BT is None


def test_a_share_holds_position_by_position_and_as_a_number_everywhere():
    outputs, (teacher, _) = _outputs(), _soft("teacher")
    common = {"ids_BT": _ids(B, T), "weights_BT": torch.ones(B, T), "soft": teacher}
    one, all_ = (outputs.token_loss(TokenTargets(**common, soft_share_BT=s)) for s in (0.3, torch.full((B, T), 0.3)))
    assert torch.equal(one.sum_nats, all_.sum_nats)
    assert torch.equal(one.nll_BT, outputs.token_loss(TokenTargets(**common, soft_share_BT=0.9)).nll_BT), (
        "hard, as it is logged"
    )


def test_a_share_of_zero_is_the_hard_loss_to_the_bit_and_calls_no_teacher():
    outputs = _outputs()
    common = {"ids_BT": _ids(B, T), "weights_BT": _weights("some")}
    never = Teacher(outputs=None)
    off = outputs.token_loss(TokenTargets(**common, soft=never, soft_share_BT=0.0))
    assert torch.equal(off.sum_nats, outputs.token_loss(TokenTargets(**common)).sum_nats)


def test_a_student_that_is_its_own_teacher_gets_no_gradient_at_exponent_1():
    outputs = _outputs()
    targets = TokenTargets(ids_BT=_ids(B, T), weights_BT=torch.ones(B, T), soft=Teacher(outputs=outputs))
    for d in torch.autograd.grad(outputs.token_loss(targets).sum_nats, (outputs.hidden_BTD, outputs.head.weight)):
        torch.testing.assert_close(d, torch.zeros_like(d), rtol=0, atol=1e-5)


def test_a_teacher_gets_no_gradient():
    outputs, (teacher, _) = _outputs(), _soft("teacher")
    for plain in (False, True):
        targets = TokenTargets(ids_BT=_ids(B, T), weights_BT=torch.ones(B, T), soft=teacher)
        outputs.token_loss(targets, plain=plain).sum_nats.backward()
    assert teacher.outputs.hidden_BTD.grad is None and teacher.outputs.head.weight.grad is None
    assert outputs.head.weight.grad is not None


@pytest.mark.parametrize(
    ("teacher", "message"),
    [(_outputs(seed=7, ids=V + 1), "it has 20 ids, the student 19"), (_outputs(seed=7, shape=(B, T + 1)), "positions")],
)
def test_a_teacher_of_other_tokens_is_refused(teacher, message):
    targets = TokenTargets(ids_BT=_ids(B, T), weights_BT=torch.ones(B, T), soft=Teacher(outputs=teacher))
    with pytest.raises(ConfigError, match=message):
        _outputs().token_loss(targets)


def test_positions_of_weight_0_meet_neither_head(monkeypatch):
    weights_BT = torch.zeros(B, T)
    weights_BT[1, 2:4] = 1
    outputs, (teacher, _) = _outputs(), _soft("teacher")
    nan_BTD = outputs.hidden_BTD.detach().masked_fill(weights_BT[..., None] == 0, float("nan")).requires_grad_()
    outputs = Outputs(hidden_BTD=nan_BTD, head=outputs.head)
    with torch.no_grad():
        teacher.outputs.hidden_BTD[weights_BT == 0] = float("nan")
    monkeypatch.setattr(products, "LIBRARY", "blas")  # by another library it would be counted elsewhere
    seen, mm, linear = [], torch.mm, F.linear
    monkeypatch.setattr(torch, "mm", lambda a, b, **named: seen.append(len(a)) or mm(a, b, **named))
    monkeypatch.setattr(F, "linear", lambda x, *rest: seen.append(len(x)) or linear(x, *rest))
    loss = outputs.token_loss(TokenTargets(ids_BT=_ids(B, T), weights_BT=weights_BT, soft=teacher, soft_share_BT=0.5))
    assert seen == [2, 2, 2], "the student's logits, the teacher's, the states' gradient: two positions each"
    loss.sum_nats.backward()
    assert loss.sum_nats.isfinite() and outputs.head.weight.grad.isfinite().all() and nan_BTD.grad.isfinite().all()
    assert not nan_BTD.grad[weights_BT == 0].any()


def test_tied_heads_get_the_gradient_of_both_uses():
    def gradient(plain):
        model = Decoder(num_layers=1, d_model=16, num_heads=2, tied_embeddings=True).build(vocab_size=V)
        model.initialize(seed=0)
        targets = TokenTargets(ids_BT=_ids(B, T), weights_BT=_weights("some"), soft=_soft("top")[0], soft_share_BT=0.4)
        outputs = model(Batch(tokens_BT=_ids(B, T, seed=1)))
        assert isinstance(outputs, protocols.Outputs)
        if plain:
            soft_BTV = torch.zeros(B, T, V).scatter_add(-1, targets.soft.ids_BTK, targets.soft.probs_BTK)
            logits_BTV = F.linear(outputs.hidden_BTD, model.embedding.weight).double()
            _by_definition(logits_BTV, targets, soft_BTV).sum().backward()
        else:
            outputs.token_loss(targets).sum_nats.backward()
        assert model.head.weight is model.embedding.weight
        return model.embedding.weight.grad

    torch.testing.assert_close(gradient(False), gradient(True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("counted", ["all", "some"])
def test_the_plain_path_passes_second_derivatives_to_states_head_shares_and_probabilities(counted):
    outputs, few = _outputs(dtype=torch.float64), _soft("top")[0]
    share_BT = (torch.rand(B, T, generator=torch.Generator().manual_seed(9)).double() / 2).requires_grad_()
    inputs = (
        outputs.hidden_BTD,
        outputs.head.weight.detach().requires_grad_(),
        few.probs_BTK.double().requires_grad_(),
        share_BT,
    )

    def loss(hidden_BTD, weight_VD, probs_BTK, share_BT):
        head = type("Head", (), {"weight": weight_VD, "bias": None})()
        soft = TopK(ids_BTK=few.ids_BTK, probs_BTK=probs_BTK)
        targets = TokenTargets(
            ids_BT=_ids(B, T),
            weights_BT=_weights(counted).double(),
            soft=soft,
            soft_share_BT=share_BT,
            smoothing=0.1,
            z_weight=0.1,
        )
        return Outputs(hidden_BTD=hidden_BTD, head=head).token_loss(targets, plain=True).sum_nats

    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


@pytest.mark.parametrize("field", ["weights_BT", "soft_share_BT", "probs_BTK"])
def test_targets_that_need_a_gradient_are_refused_in_chunks(field):
    fields = {"weights_BT": torch.ones(B, T), "soft_share_BT": torch.full((B, T), 0.5), "probs_BTK": torch.ones(B, T, K) / K}
    fields[field].requires_grad_()
    soft = TopK(ids_BTK=_ids(B, T, K), probs_BTK=fields.pop("probs_BTK"))
    targets = TokenTargets(ids_BT=_ids(B, T), soft=soft, **fields)
    with pytest.raises(ConfigError, match="plain=True"):
        _outputs().token_loss(targets)
    with torch.no_grad():
        assert _outputs().token_loss(targets).sum_nats.isfinite()


@pytest.mark.parametrize("kind", [None, "top", "teacher", "array"])
def test_in_bfloat16_loss_and_gradients_are_those_of_full_logits_in_bfloat16(kind):
    """Logits are rounded to bfloat16 on both paths; gradients of logits too, each by at most 2^-8 of itself."""
    targets = TokenTargets(
        ids_BT=_ids(B, T),
        weights_BT=_weights("some"),
        soft=None if kind is None else _soft(kind)[0],
        soft_share_BT=0.5,
        rank=True,
    )
    found = []
    for plain in (False, True):
        outputs = _outputs()
        with torch.autocast("cpu", torch.bfloat16):
            loss = outputs.token_loss(targets, plain=plain)
            logprobs = outputs.logprobs(targets.ids_BT[..., None], counted_BT=targets.weights_BT > 0, plain=plain)
        total = loss.sum_nats + logprobs.sum()
        found.append((loss, logprobs, *torch.autograd.grad(total, (outputs.hidden_BTD, outputs.head.weight))))
    (mine, logprobs, *gradients), (plain, plain_logprobs, *plain_gradients) = found
    assert mine.sum_nats.dtype == torch.float32
    torch.testing.assert_close(mine.sum_nats, plain.sum_nats, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.nll_BT, plain.nll_BT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logprobs, plain_logprobs, rtol=1e-5, atol=1e-5)
    assert torch.equal(mine.rank_BT, plain.rank_BT)
    for one, other in zip(gradients, plain_gradients, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 2**-7 * other.norm()


@pytest.mark.parametrize("counted", ["all", "some", "none"])
def test_log_probabilities_and_the_likeliest_ids_stand_where_they_are_counted(counted):
    outputs, counted_BT = _outputs(), _weights(counted) > 0
    ids_BTK = _ids(B, T, 2)
    full_BTV = F.linear(outputs.hidden_BTD, outputs.head.weight).log_softmax(-1)
    wanted = full_BTV.gather(-1, ids_BTK) * counted_BT[..., None]
    scale = _draw(B, T, 2, seed=5)
    leaves = outputs.hidden_BTD, outputs.head.weight
    theirs = torch.autograd.grad((wanted * scale).sum(), leaves, retain_graph=True)
    for plain in (False, True):
        found = outputs.logprobs(ids_BTK, counted_BT=counted_BT, plain=plain)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        for one, other in zip(torch.autograd.grad((found * scale).sum(), leaves), theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    best = outputs.top(3, counted_BT=counted_BT)
    values, ids = full_BTV.detach().exp().topk(3)
    torch.testing.assert_close(best.probs_BTK, values * counted_BT[..., None], rtol=1e-5, atol=1e-6)
    assert torch.equal(best.ids_BTK, ids * counted_BT[..., None])
    assert torch.equal(outputs.top(3).ids_BTK, ids) and not outputs.top(3).probs_BTK.requires_grad


@pytest.mark.parametrize("k", [0, V + 1])
def test_more_likeliest_ids_than_there_are_is_refused(k):
    with pytest.raises(ConfigError, match=r"1\.\.19"):
        _outputs().top(k)


def test_gradients_of_gradients_in_chunks_are_refused():
    outputs = _outputs()
    loss = outputs.token_loss(TokenTargets(ids_BT=_ids(B, T), weights_BT=torch.ones(B, T)))
    found = outputs.logprobs(_ids(B, T, 1), counted_BT=torch.ones(B, T, dtype=torch.bool))
    for total in (loss.sum_nats, found.sum()):
        with pytest.raises(ConfigError, match="ask for plain=True"):
            torch.autograd.grad(total, outputs.hidden_BTD, create_graph=True)


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.size = max(self.size, value.numel())
        return out


def test_the_full_matrix_of_logits_never_exists():
    """The largest tensor that is made on the way holds one chunk, whatever is asked; the plain path's holds all."""
    rows, vocabulary = (4, 256), 8192
    outputs = _outputs(width=4, shape=rows, ids=vocabulary)
    teacher = Teacher(outputs=_outputs(width=3, seed=7, shape=rows, ids=vocabulary), exponent=0.5)
    ids_BT, all_BT = _ids(*rows, below=vocabulary), torch.ones(rows)
    few = TopK(ids_BTK=_ids(*rows, 5, below=vocabulary), probs_BTK=torch.full((*rows, 5), 0.2))
    leaves = outputs.hidden_BTD, outputs.head.weight

    def largest(make):
        with _Largest() as mode:
            make()
        return mode.size

    def loss(soft, **named):
        targets = TokenTargets(
            ids_BT=ids_BT, weights_BT=all_BT, soft=soft, soft_share_BT=0.5, smoothing=0.1, z_weight=0.1, rank=True, log_z=True
        )
        torch.autograd.grad(outputs.token_loss(targets, **named).sum_nats, leaves)

    def logprobs():
        torch.autograd.grad(outputs.logprobs(few.ids_BTK, counted_BT=all_BT > 0).sum(), leaves)

    chunked = [lambda: loss(None), lambda: loss(few), lambda: loss(teacher), logprobs, lambda: outputs.top(3)]
    full = rows[0] * rows[1] * vocabulary
    assert all(largest(make) <= head_loss.CHUNK < full for make in chunked)
    assert largest(lambda: loss(few, plain=True)) == full


def test_one_question_is_all_that_waits_for_a_gpu():
    """Counting the counted positions needs their number; nothing else asks a tensor for its values."""

    class Waits(TorchDispatchMode):
        found = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select"):
                self.found.append(func.overloadpacket.__name__)
            if func.overloadpacket.__name__ in ("index", "index_put_"):
                assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask as an index waits too"
            return func(*args, **(kwargs or {}))

    targets = TokenTargets(
        ids_BT=_ids(B, T), weights_BT=_weights("some"), soft=_soft("teacher")[0], soft_share_BT=0.5, smoothing=0.1, rank=True
    )
    outputs = _outputs()
    with Waits() as waits:
        outputs.token_loss(targets).sum_nats.backward()
    assert waits.found == ["nonzero"]


def test_the_head_s_weight_is_read_when_the_loss_is_asked_for():
    outputs, targets = _outputs(), TokenTargets(ids_BT=_ids(B, T), weights_BT=torch.ones(B, T))
    outputs.token_loss(targets)
    outputs.head.weight = nn.Parameter(torch.zeros(V, D))
    nll_BT = outputs.token_loss(targets).nll_BT
    torch.testing.assert_close(nll_BT, torch.full((B, T), float(V)).log())


def test_smoothing_is_torch_s_and_logged_is_the_hard_loss():
    outputs, weights_BT = _outputs(), _weights("some")
    batch = Batch(tokens_BT=_ids(B, T), targets_BT=_ids(B, T, seed=2), weights_BT=weights_BT)
    loss = Tokens(smoothing=0.1)(outputs, batch=batch, context=None)
    logits_BVT = F.linear(outputs.hidden_BTD, outputs.head.weight).transpose(1, 2)
    wanted, hard = (F.cross_entropy(logits_BVT, batch.targets_BT, reduction="none", label_smoothing=s) for s in (0.1, 0.0))
    torch.testing.assert_close(loss.sum_nats, (wanted * weights_BT).sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.parts["nll"], (hard * weights_BT).sum(), rtol=1e-5, atol=1e-5)
    assert torch.equal(
        Tokens(smoothing=0.0)(outputs, batch=batch, context=None).sum_nats,
        Tokens()(outputs, batch=batch, context=None).sum_nats,
    )


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_beyond_its_range_is_refused(smoothing):
    with pytest.raises(ConfigError, match="smoothing must lie in 0"):
        Tokens(smoothing=smoothing)
