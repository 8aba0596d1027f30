import pytest
import torch

from seedbed.core.errors import ConfigError
from seedbed.models.decoder import Decoder
from seedbed.transfer.rules import Rules


def _model(vocab_size, seed):
    model = Decoder(num_layers=2, d_model=16, num_heads=2).build(vocab_size=vocab_size)
    model.initialize(seed=seed)
    return model


def _transfer(rules, old_vocabulary=18, new_vocabulary=257):
    old, new, untouched = _model(old_vocabulary, 1), _model(new_vocabulary, 2), _model(new_vocabulary, 2)
    weights = {old.roles[n]: p.detach() for n, p in old.named_parameters()}
    report = rules(dict(new.named_parameters()), roles=new.roles, old=weights, seed=0)
    return report, dict(old.named_parameters()), dict(new.named_parameters()), dict(untouched.named_parameters())


def test_the_published_rule_keeps_the_body_and_renews_embedding_and_head():
    report, old, new, untouched = _transfer(Rules())
    for name, p in new.items():
        fresh = name in ("embedding.weight", "head.weight")
        assert report[name] == ("fresh" if fresh else "keep")
        assert torch.equal(p, untouched[name] if fresh else old[name]), name
    assert len(report) == len(new)


def test_attention_only_transfer_leaves_the_rest_fresh():
    report, old, new, untouched = _transfer(Rules(fresh=("embedding", "head", "mlp", "norm")))
    assert torch.equal(new["blocks.1.attention.out.weight"], old["blocks.1.attention.out.weight"])
    assert torch.equal(new["blocks.1.mlp.up.weight"], untouched["blocks.1.mlp.up.weight"])
    assert report["blocks.0.attention_norm.weight"] == "fresh"


def test_redrawn_tensors_keep_mean_and_spread_only():
    _, old, new, _ = _transfer(Rules(redraw=("mlp",)))
    name = "blocks.0.mlp.up.weight"
    assert not torch.equal(new[name], old[name])
    assert float(new[name].std().detach()) == pytest.approx(float(old[name].std().detach()), rel=0.1)


def test_layers_can_be_named():
    report, *_ = _transfer(Rules(fresh=("embedding", "head", "block@-1:")))
    assert {n for n, action in report.items() if action == "keep"} == {
        n for n in report if n.startswith("blocks.0.") or n == "norm.weight"
    }


def test_shapes_that_differ_and_parameters_without_a_rule_are_errors():
    with pytest.raises(ConfigError, match=r"embedding has shape \(18, 16\) in the old model and \(257, 16\)"):
        _transfer(Rules(fresh=("head",)))
    with pytest.raises(ConfigError, match="no rule says what becomes of norm"):
        _transfer(Rules(keep=("attention", "mlp")))
