import copy

import pytest
import torch

from seedbed.core.errors import ConfigError
from seedbed.core.records import Role
from seedbed.engine.checkpoints import load_checkpoint, pack, write
from seedbed.models.decoder import Decoder
from seedbed.optimizers.adamw import AdamW
from seedbed.optimizers.muon import Muon
from tests.processes import ended, ranks


def _model(**settings):
    sizes = {"num_layers": 1, "d_model": 8, "num_heads": 2, "attention_bias": True, "qk_norm": True}
    model = Decoder(**{**sizes, **settings}).build(vocab_size=7)
    model.initialize(seed=0)
    return model


def _built(settings, model):
    return settings.build([(model.roles[n], p) for n, p in model.named_parameters()])


def _with_gradients(model, *, seed):
    draws = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draws)


def _matrix(gradient, **settings):
    """Return the first step, as a multiple of the learning rate, of a matrix of zeros with this gradient."""
    p = torch.nn.Parameter(torch.zeros_like(gradient))
    optimizer = Muon(learning_rate=1e-2, **settings).build([(Role("mlp", 0, "up"), p)])
    p.grad = gradient
    optimizer.step()
    return p.detach() / -1e-2


@pytest.mark.parametrize("shape", [(48, 48), (32, 80), (80, 32)])
@pytest.mark.parametrize("spectrum", ["flat", "a hundredfold range", "one value dominates"])
def test_a_matrix_moves_by_singular_values_near_one_whatever_the_gradient_s_are(shape, spectrum):
    """Without rounding, the iteration brings what is 0.005 of the Frobenius norm or more to between 0.68 and 1.16."""
    torch.manual_seed(0)
    size = min(shape)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = {
        "flat": torch.ones(size),
        "a hundredfold range": torch.logspace(0, -2, size) * 1e-3,
        "one value dominates": torch.tensor([1.0] + [0.02] * (size - 1)) * 1e4,
    }[spectrum]
    moved = _matrix(left @ torch.diag(values) @ right) / (0.2 * max(shape) ** 0.5)
    along = left.T @ moved @ right.T
    found = torch.linalg.svdvals(moved)
    assert found.min() > 0.5 and found.max() < 1.3
    assert (along.diagonal() > 0.5).all(), "in the gradient's own directions and sense"
    assert (along - torch.diag(along.diagonal())).abs().max() < 0.1


def test_the_root_mean_square_of_a_step_is_near_adamw_s_for_every_shape():
    """Liu et al. take 0.2: what they saw AdamW move by, in learning rates."""
    torch.manual_seed(0)
    for shape in ((64, 64), (16, 128), (128, 16)):
        assert float(_matrix(torch.randn(shape)).square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_fewer_iterations_leave_small_singular_values_small():
    gradient = torch.diag(torch.tensor([1.0, 0.01]))
    one, five = (torch.linalg.svdvals(_matrix(gradient, ns_steps=n) / (0.2 * 2**0.5)) for n in (1, 5))
    assert one.min() < 0.05 and five.min() > 0.5


def test_matrices_of_attention_and_mlp_are_muon_s_by_role_and_everything_else_is_adamw_s():
    model = _model(head_bias=True, mlp_bias=True)
    optimizer = _built(Muon(), model)
    muon_s = {id(p) for g in optimizer.param_groups if "ns_steps" in g for p in g["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in muon_s) is (name.startswith("blocks.") and p.ndim == 2), name
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    cube = torch.nn.Parameter(torch.ones(2, 3, 4))
    (group,) = Muon().build([(Role("attention", 0, "heads"), cube)]).param_groups
    assert "ns_steps" not in group


def test_the_rest_moves_to_the_bit_as_with_adamw_and_matrices_as_with_torch_s_muon():
    shared = {"learning_rate": 3e-3, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    both, adamw, muon = (_model() for _ in range(3))
    optimizers = [_built(Muon(**shared, momentum=0.9), both), _built(AdamW(**shared), adamw)]
    matrices = [p for n, p in muon.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    optimizers.append(
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.1, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw")
    )
    start = [p.detach().clone() for p in both.parameters()]
    for step in range(4):
        for model, optimizer in zip((both, adamw, muon), optimizers, strict=True):
            _with_gradients(model, seed=step)
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 / (1 + step)  # as the loop sets it
            optimizer.step()
    for (name, p), before, a, m in zip(both.named_parameters(), start, adamw.parameters(), muon.parameters(), strict=True):
        is_matrix = name.startswith("blocks.") and p.ndim == 2
        assert not torch.equal(p, before), name
        assert torch.equal(p, m if is_matrix else a) and not torch.equal(p, a if is_matrix else m), name


def test_one_kind_alone_works_and_a_parameter_without_gradient_stays():
    matrix, gain = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3))
    for role, p in ((Role("mlp", 0, "up"), matrix), (Role("norm", 0, "mlp"), gain)):
        optimizer = Muon().build([(role, p)])
        assert len(optimizer.param_groups) == 1
        optimizer.step()
        assert torch.equal(p, torch.ones_like(p)) and not optimizer.state
        assert optimizer.step(lambda p=p: (p**2).sum().backward() or 5.0) == 5.0
        assert (p < 1).all() and list(optimizer.state) == [p]


def test_a_checkpoint_gives_back_the_state_of_both(tmp_path):
    first, second = _model(), _model()
    one, two = (_built(Muon(weight_decay=0.1), m) for m in (first, second))
    for step in range(2):
        _with_gradients(first, seed=step)
        one.step()
    write(tmp_path / "c", pack(first, one, {}))
    _with_gradients(second, seed=7)
    two.step()  # what it had is dropped
    load_checkpoint(tmp_path / "c", model=second, optimizer=two)
    kept = {n: set(two.state[p]) for n, p in second.named_parameters()}
    assert kept["blocks.0.mlp.up.weight"] == {"momentum_buffer"}
    assert kept["embedding.weight"] == {"step", "exp_avg", "exp_avg_sq"}
    _same_from_here(first, one, second, two)


def test_torch_s_own_state_dict_gives_it_back_too():
    first, second = _model(), _model()
    one, two = (_built(Muon(), m) for m in (first, second))
    _with_gradients(first, seed=0)
    one.step()
    second.load_state_dict(first.state_dict())
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    _same_from_here(first, one, second, two)


def _same_from_here(first, one, second, two):
    for step in (10, 11):
        for model, optimizer in ((first, one), (second, two)):
            _with_gradients(model, seed=step)
            optimizer.step()
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert all(torch.equal(one.state[p][k], two.state[q][k]) for k in one.state[p]), name


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"momentum": 1.0}, "momentum must lie in 0..1"),
        ({"momentum": -0.1}, "momentum must lie in 0..1"),
        ({"ns_steps": 0}, "ns_steps must lie in 1..99"),
        ({"ns_steps": 100}, "ns_steps must lie in 1..99"),
        ({"learning_rate": 0.0}, "learning_rate must lie in"),
        ({"betas": (0.9, 1.0)}, "betas must lie in"),
        ({"eps": 0.0}, "eps must lie in"),
        ({"weight_decay": -1.0}, "weight_decay must lie in 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, said):
    with pytest.raises(ConfigError, match=said):
        Muon(**setting)


@pytest.mark.slow
def test_a_step_on_parameters_sharded_over_two_ranks_is_that_on_whole_ones():
    codes, said = ended(ranks(2, "tests.optimizers.test_muon"))
    assert codes == [0, 0], said
    assert said.count("as on whole ones") == 2


def _compare_sharded_with_whole(d_ff):
    """Make three steps of a sharded decoder and of a whole one by the same gradients; of one row, rank 1 holds nothing."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole, sharded = (_model(d_ff=d_ff) for _ in range(2))
    for block in sharded.blocks:
        fully_shard(block)
    fully_shard(sharded)
    optimizers = [_built(Muon(learning_rate=0.01, weight_decay=0.1), m) for m in (whole, sharded)]
    start = [p.detach().clone() for p in whole.parameters()]
    for step in range(3):
        _with_gradients(whole, seed=step)
        for p, q in zip(whole.parameters(), sharded.parameters(), strict=True):
            q.grad = distribute_tensor(p.grad, q.device_mesh, q.placements)
        for optimizer in optimizers:
            optimizer.step()
    for (name, p), q, before in zip(whole.named_parameters(), sharded.parameters(), start, strict=True):
        assert isinstance(q, DTensor)
        moved, moved_too = p.detach() - before, q.detach().full_tensor() - before
        torch.testing.assert_close(
            moved_too, moved, rtol=1e-5, atol=1e-6 * float(before.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_step_s_cost_is_that_of_the_iterations_products():
    wide, tall = torch.nn.Parameter(torch.zeros(4, 10)), torch.nn.Parameter(torch.zeros(10, 4))
    groups = [
        (Role("mlp", 0, "up"), wide),
        (Role("attention", 0, "out"), tall),
        (Role("embedding"), torch.nn.Parameter(torch.zeros(9, 4))),
    ]
    iteration = 2 * 4 * 10 * 4 + 2 * 4 * 4 * 4 + 2 * 4 * 4 * 10  # X X', its square, times X
    assert Muon(ns_steps=3).cost(groups).flops_run == 2 * 3 * iteration


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    for width in (1, 5):
        _compare_sharded_with_whole(width)
    print("as on whole ones", flush=True)
    torch.distributed.destroy_process_group()
