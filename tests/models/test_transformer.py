import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seedbed.core.errors import ConfigError
from seedbed.core.records import Batch, Role, TokenTargets, blank
from seedbed.models import head_loss, products
from seedbed.models.decoder import Decoder
from seedbed.models.hugging_face import llama_config, llama_weights
from seedbed.models.sizes import SIZES

TINY = Decoder(num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48)


def _model(config=TINY, *, vocab_size=17, seed=0, **settings):
    model = config.build(vocab_size=vocab_size)
    model.initialize(seed=seed, **settings)
    return model.eval()


def _batch(rows=2, length=9, vocab_size=17, **fields):
    return Batch(tokens_BT=torch.from_numpy(np.random.default_rng(0).integers(0, vocab_size, (rows, length))), **fields)


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_kv_heads": 4}, {"tied_embeddings": True}, {"attention_bias": True, "mlp_bias": True}, {"rope_base": 500.0}],
    ids=str,
)
def test_logits_are_those_of_hugging_face_s_llama(changes):
    transformers = pytest.importorskip("transformers")
    config = Decoder(**{"num_layers": 2, "d_model": 32, "num_heads": 4, "num_kv_heads": 2, "d_ff": 48, **changes})
    ours = _model(config)
    with torch.no_grad():
        for name, p in ours.named_parameters():
            if name.endswith("bias"):
                p.normal_(generator=torch.Generator().manual_seed(1))
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama_config(config.shape, vocab_size=17))).eval()
    found = theirs.load_state_dict(dict(llama_weights(ours)), strict=False)
    assert found.unexpected_keys == [] and set(found.missing_keys) <= ({"lm_head.weight"} if config.tied_embeddings else set())
    theirs.tie_weights()
    batch = _batch()
    with torch.no_grad():
        torch.testing.assert_close(ours(batch).logits(), theirs(batch.tokens_BT).logits, atol=1e-5, rtol=0)


def test_what_llama_does_not_have_is_not_called_a_llama():
    with pytest.raises(ConfigError, match="not|only a causal"):
        llama_config(Decoder(num_layers=1, d_model=8, num_heads=1, head_bias=True).shape, vocab_size=3)


def test_the_paper_s_body_has_1_6_billion_parameters():
    with torch.device("meta"):
        model = Decoder(size="1.6B").build(vocab_size=64_000)
    body = sum(p.numel() for n, p in model.named_parameters() if model.roles[n].part not in ("embedding", "head"))
    assert body == 1_610_713_088


@pytest.mark.parametrize("size", [s for s in SIZES if s != "1.6B"])
def test_a_size_s_name_is_about_its_body(size):
    with torch.device("meta"):
        model = Decoder(size=size).build(vocab_size=10)
    body = sum(p.numel() for n, p in model.named_parameters() if model.roles[n].part not in ("embedding", "head"))
    assert body == pytest.approx(float(size[:-1]) * 1e6, rel=0.25)


def test_a_causal_model_does_not_see_what_follows_and_a_bidirectional_one_does():
    batch = _batch()
    changed = Batch(tokens_BT=batch.tokens_BT.clone())
    changed.tokens_BT[:, 6:] = (changed.tokens_BT[:, 6:] + 1) % 17
    same = [torch.equal(m(batch).hidden_BTD[:, :6], m(changed).hidden_BTD[:, :6]) for m in (_model(),)]
    assert same == [True]
    both_ways = _model(Decoder(num_layers=2, d_model=32, num_heads=4, mask="bidirectional"))
    assert not torch.equal(both_ways(batch).hidden_BTD[:, :6], both_ways(changed).hidden_BTD[:, :6])


def test_with_a_document_mask_a_document_is_read_as_if_alone():
    config = Decoder(num_layers=2, d_model=32, num_heads=4, document_mask=True)
    model = _model(config)
    documents = torch.tensor([[0] * 4 + [1] * 5] * 2)
    together = _batch(documents_BT=documents)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 2)[..., None]
    hidden = model(Batch(tokens_BT=together.tokens_BT, documents_BT=documents, positions_BTA=positions)).hidden_BTD
    alone = model(Batch(tokens_BT=together.tokens_BT[:, 4:], documents_BT=documents[:, 4:])).hidden_BTD
    torch.testing.assert_close(hidden[:, 4:], alone, atol=1e-6, rtol=1e-5)
    plain = _model(Decoder(num_layers=2, d_model=32, num_heads=4))
    assert torch.equal(model(_batch()).hidden_BTD, plain(_batch()).hidden_BTD), "without documents a row is one document"


def test_rotary_positions_depend_on_distance_only():
    model = _model()
    batch = _batch()
    moved = Batch(tokens_BT=batch.tokens_BT, positions_BTA=(torch.arange(9) + 5)[None, :, None].expand(2, 9, 1))
    torch.testing.assert_close(model(batch).hidden_BTD, model(moved).hidden_BTD, atol=1e-5, rtol=1e-4)


def test_every_parameter_has_a_role_of_its_own():
    roles = _model().roles
    assert set(roles) == {n for n, _ in _model().named_parameters()}
    assert len(set(roles.values())) == len(roles)
    assert roles["blocks.1.attention.query.weight"] == Role("attention", 1, "query")
    assert roles["blocks.0.mlp_norm.weight"] == Role("norm", 0, "mlp")
    assert {roles["embedding.weight"].part, roles["head.weight"].part, roles["norm.weight"].tensor} == {
        "embedding",
        "head",
        "final",
    }


def test_initial_values_move_with_nothing_but_seed_role_and_row():
    small, deep = _model(), _model(Decoder(num_layers=3, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48))
    by_role = {deep.roles[n]: p for n, p in deep.named_parameters()}
    for name, p in small.named_parameters():
        assert torch.equal(p, by_role[small.roles[name]]), f"{name}: a further layer moves no draw"
    grown = _model(vocab_size=29)
    assert torch.equal(grown.embedding.weight[:17], small.embedding.weight), "a longer vocabulary moves no row"
    assert torch.equal(grown.head.weight[:17], small.head.weight)
    assert not torch.equal(_model(seed=1).head.weight, small.head.weight)


def test_initial_values_have_the_asked_spread():
    model = _model(vocab_size=500, embedding_std=1.0)
    assert float(model.embedding.weight.std()) == pytest.approx(1.0, rel=0.02)
    assert float(model.head.weight.std()) == pytest.approx(0.02, rel=0.03)
    assert float(model.blocks[0].mlp.up.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert (model.norm.weight == 1).all()


def test_another_stream_for_the_body_leaves_embedding_and_head():
    first, second = _model(), _model(body_stream="init-second")
    assert torch.equal(first.embedding.weight, second.embedding.weight) and torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.blocks[0].mlp.up.weight, second.blocks[0].mlp.up.weight)


def test_the_token_loss_is_cross_entropy_over_what_is_asked():
    model, batch = _model(), _batch()
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 17, (2, 9)))
    weights = torch.tensor([[0.0, 1, 1, 0, 0.5, 1, 1, 1, 0]] * 2)
    loss = model(batch).token_loss(TokenTargets(ids_BT=ids, weights_BT=weights))
    nll = torch.nn.functional.cross_entropy(model(batch).logits().transpose(1, 2), ids, reduction="none")
    torch.testing.assert_close(loss.nll_BT, nll * (weights > 0))
    torch.testing.assert_close(loss.sum_nats, (nll * weights).sum())


def test_chunks_change_neither_loss_nor_gradient(monkeypatch):
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 17, (2, 9)))

    def gradient():
        model = _model()
        loss = model(_batch()).token_loss(TokenTargets(ids_BT=ids, weights_BT=torch.ones(2, 9), z_weight=0.1))
        loss.sum_nats.backward()
        return float(loss.sum_nats.detach()), model.blocks[0].mlp.up.weight.grad, model.head.weight.grad

    whole = gradient()
    monkeypatch.setattr(head_loss, "chunk_rows", lambda positions, **_: max(1, min(positions, 4)))
    parts = gradient()
    assert whole[0] == pytest.approx(parts[0], rel=1e-6)
    torch.testing.assert_close(whole[1:], parts[1:], atol=1e-5, rtol=1e-5)


def test_a_loss_over_nothing_is_zero():
    loss = _model()(_batch()).token_loss(TokenTargets(ids_BT=torch.zeros(2, 9).long(), weights_BT=torch.zeros(2, 9)))
    assert float(loss.sum_nats) == 0


def test_the_cost_formula_agrees_with_a_flop_counter(monkeypatch):
    monkeypatch.setattr(products, "LIBRARY", "blas")  # torch counts its own products only
    model = _model(Decoder(num_layers=2, d_model=32, num_heads=4, mask="bidirectional"))
    batch = _batch(rows=3, length=16)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(batch).logits()
    assert model.cost(blank(rows=3, seq_len=16)).flops_run == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "0.3m"}, "did you mean '0.3M'"),
        ({"num_layers": 2, "d_model": 30, "num_heads": 4}, "multiple of num_heads"),
        ({"size": "0.3M", "num_kv_heads": 4}, "multiple of num_kv_heads"),
        ({"num_layers": 2, "d_model": 32}, "needs a size"),
        ({"size": "0.3M", "layers": {"atention": "default"}}, "did you mean 'attention'"),
        ({"size": "0.3M", "attention_dropout": 1.0}, "attention_dropout"),
    ],
)
def test_impossible_models_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Decoder(**settings)


def test_a_layer_of_ones_own_fills_a_site(tmp_path, monkeypatch):
    """The linear site, filled from a file: every projection but the head is scaled."""
    file = tmp_path / "half.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom torch import nn\nfrom seedbed.models.layers.site import Layer\n\n"
        "class Half(nn.Module):\n"
        "    def __init__(self, inner):\n        super().__init__()\n        self.inner = inner\n"
        "    def forward(self, x):\n        return self.inner(x) / 2\n\n"
        "@dataclass(frozen=True)\nclass HalfLinear(Layer):\n"
        "    sites, layout_free = ('linear',), True\n"
        "    def build(self, site):\n        return Half(site.default())\n"
    )
    monkeypatch.setenv("SEEDBED_ALLOW_LOCAL_CODE", "1")
    model = _model(Decoder(num_layers=1, d_model=16, num_heads=2, layers={"linear": f"{file}:HalfLinear"}))
    assert type(model.blocks[0].mlp.up).__name__ == "Half"
    assert model.roles["blocks.0.mlp.up.inner.weight"] == Role("mlp", 0, "up.inner")
    assert isinstance(model.head, torch.nn.Linear)
