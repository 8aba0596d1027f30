import numpy as np
import pytest

from seedbed.core.errors import ConfigError
from seedbed.models.transformer import Decoder
from seedbed.tokenizers.bytes import Bytes
from seedbed.writers.sample import Sample


def _writer(**settings):
    model = Decoder(num_layers=1, d_model=16, num_heads=2).build(vocab_size=257)
    model.initialize(seed=0, embedding_std=0.5)
    return Sample(model=model, tokenizer=Bytes(), seq_len=8, **settings)


def test_a_sample_repeats_with_its_seed_and_differs_with_another():
    writer = _writer()
    assert writer.write(["ab"], new_tokens=12, seed=1) == writer.write(["ab"], new_tokens=12, seed=1)
    assert writer.write(["ab"], new_tokens=12, seed=1) != writer.write(["ab"], new_tokens=12, seed=2)


def test_tokens_come_as_often_as_their_probability():
    writer = _writer(temperature=1.0)
    logits = np.log(np.array([0.1, 0.6, 0.3]))
    draws = np.random.default_rng(0)
    counts = np.bincount([writer._pick(logits, draws) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.1, 0.6, 0.3], atol=0.03)


def test_temperature_zero_and_top_k_leave_the_likeliest():
    logits = np.array([0.0, 3.0, 2.0, -1.0])
    draws = np.random.default_rng(0)
    assert _writer(temperature=0.0)._pick(logits, draws) == 1
    assert {_writer(temperature=5.0, top_k=2)._pick(logits, draws) for _ in range(100)} == {1, 2}


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError):
        _writer(temperature=-1.0)
