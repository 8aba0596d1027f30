import pytest
import torch
from torch import nn

from seedbed.core.errors import ConfigError
from seedbed.core.records import Batch
from seedbed.models import cache
from seedbed.models.cache import Cached, Recomputed, stepper
from seedbed.models.decoder import Decoder

SMALL = {"num_layers": 2, "d_model": 32, "num_heads": 4}
PROMPTS = [torch.arange(n) % 17 for n in (1, 5, 9)]
SETTINGS = [
    {},
    {"num_kv_heads": 1},
    {"num_kv_heads": 2, "head_dim": 12},
    {"window": 4},
    {"window": 1},
    {"qk_norm": True, "num_kv_heads": 2},
    {"tied_embeddings": True},
    {"document_mask": True},
    {"attention_bias": True, "mlp_bias": True, "head_bias": True},
    {"attention_bias": "qkv", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
]


def _model(vocab_size=17, **settings):
    model = Decoder(**SMALL, **settings).build(vocab_size=vocab_size)
    model.initialize(seed=0, embedding_std=0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # so that they matter
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()))
    return model.double().eval()


def _plain(model, ids):
    """Logits behind a row that is shown to the model from the start."""
    return model.head(model(Batch(tokens_BT=torch.tensor(ids)[None])).hidden_BTD)[0, -1]


def _draw(shape, seed):
    return torch.randint(0, 17, shape, generator=torch.Generator().manual_seed(seed))


def _shown(row, more, seq_len):
    """What a row shows after more ids, by the rule in cache.py's docstring."""
    for id in more:
        row = [*row, id]
        row = row if len(row) <= seq_len else row[-max(1, seq_len // 2) :]
    return row


def _continue(model, *, steps, seq_len, samples=3, prompts=PROMPTS):
    """Step a grid through drawn ids; check each logit against the plain forward over what the rule says is shown."""
    grid = stepper(model).begin(prompts, samples=samples, seq_len=seq_len)
    shown = [[p[-seq_len:].tolist() for _ in range(samples)] for p in prompts]
    for p, row in enumerate(shown):
        torch.testing.assert_close(grid.logits_PV[p], _plain(model, row[0]), rtol=0, atol=1e-10)
    for step in range(steps):
        ids_PS = _draw((len(prompts), samples), step)
        logits_PSV = grid.advance(ids_PS)
        for p, rows in enumerate(shown):
            for s, row in enumerate(rows):
                row[:] = _shown(row, [int(ids_PS[p, s])], seq_len)
                torch.testing.assert_close(logits_PSV[p, s], _plain(model, row), rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@torch.no_grad()
def test_every_step_gives_the_logits_of_the_plain_forward(settings):
    model = _model(**settings)
    assert isinstance(stepper(model), Cached)
    _continue(model, steps=6, seq_len=64)


@pytest.mark.parametrize("seq_len", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("settings", [{}, {"window": 3, "num_kv_heads": 2}], ids=str)
@torch.no_grad()
def test_a_row_longer_than_seq_len_goes_on_from_its_last_half(settings, seq_len):
    """Prompts of 1, 5 and 9 ids become too long at different steps, some of them twice."""
    _continue(_model(**settings), steps=2 * seq_len + 3, seq_len=seq_len, samples=2)


@torch.no_grad()
def test_room_grows_with_the_rows():
    _continue(_model(), steps=70, seq_len=512, samples=1, prompts=PROMPTS[:1])


@torch.no_grad()
def test_prompts_read_in_portions_are_prompts_read_at_once(monkeypatch):
    model = _model()
    whole = stepper(model).begin(PROMPTS, samples=1, seq_len=6).logits_PV
    monkeypatch.setattr(cache, "READ_AT_ONCE", 12)  # two rows of 6
    portions = []
    read = Cached.read
    monkeypatch.setattr(Cached, "read", lambda self, ids, **kept: portions.append(tuple(ids.shape)) or read(self, ids, **kept))
    grid = stepper(model).begin(PROMPTS, samples=1, seq_len=6)
    assert portions == [(2, 6), (1, 6)]
    torch.testing.assert_close(grid.logits_PV, whole, rtol=0, atol=1e-12)
    _continue(model, steps=9, seq_len=6, samples=5)  # five rows are shown anew in three portions
    assert (2, 2) in portions[2:] or (5, 2) in portions[2:]


@pytest.mark.parametrize("kind", [Cached, Recomputed])
@torch.no_grad()
def test_rows_that_are_kept_go_on_as_if_alone(kind):
    """Of 3 prompts with 3 samples, sample 2 of the last prompt and samples 1 and 0 of the first stay."""
    model = _model(window=6)
    grid = kind(model).begin(PROMPTS, samples=3, seq_len=8)
    first = [_draw((3, 3), step) for step in range(3)]
    for ids_PS in first:
        grid.advance(ids_PS)
    grid.keep(torch.tensor([[8, 7], [1, 0]]))
    kept = ((2, 2), (2, 1), (0, 1), (0, 0))
    rows = [_shown(PROMPTS[p].tolist()[-8:], [int(ids_PS[p, s]) for ids_PS in first], 8) for p, s in kept]
    for step in range(4):
        ids_PS = _draw((2, 2), 10 + step)
        logits_NV = grid.advance(ids_PS).flatten(0, 1)
        for n, id in enumerate(ids_PS.flatten().tolist()):
            rows[n] = _shown(rows[n], [id], 8)
            torch.testing.assert_close(logits_NV[n], _plain(model, rows[n]), rtol=0, atol=1e-10)


class Doubled(nn.Module):
    """An MLP of another make."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        return 2 * self.inner(states)


class Summed(Doubled):
    """An MLP that looks at earlier positions."""

    def forward(self, states_BTD):
        return self.inner(states_BTD.cumsum(1))


@torch.no_grad()
def test_a_layer_of_another_make_is_computed_anew_unless_it_says_that_positions_stand_alone():
    for make in (Doubled, Summed):
        model = _model()
        for block in model.blocks:
            block.mlp = make(block.mlp)
        assert isinstance(stepper(model), Recomputed)
        _continue(model, steps=6, seq_len=7)
    model = _model()
    for block in model.blocks:
        block.mlp = Doubled(block.mlp)
        block.mlp.position_wise = True
    assert isinstance(stepper(model), Cached)
    _continue(model, steps=6, seq_len=7)


@pytest.mark.parametrize("place", ["attention", "attention.query", "attention_norm", "mlp.down"])
@torch.no_grad()
def test_wherever_a_layer_of_another_make_stands_it_is_seen(place):
    model = _model()
    block = model.blocks[1]
    inner = block.get_submodule(place)

    class Wrapped(type(inner)):
        pass

    inner.__class__ = Wrapped
    assert isinstance(stepper(model), Recomputed)
    if place != "attention":
        inner.position_wise = True
        assert isinstance(stepper(model), Cached)
        _continue(model, steps=2, seq_len=64)


def test_a_bidirectional_model_is_refused():
    with pytest.raises(ConfigError, match="cannot continue a text"):
        stepper(_model(mask="bidirectional"))
