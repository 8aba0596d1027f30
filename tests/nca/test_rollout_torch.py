import numpy as np
import pytest
import torch

from seedbed.core.errors import ConfigError
from seedbed.nca import Automaton
from seedbed.nca import rollout_torch as module
from seedbed.nca.rollout_torch import TorchRoller

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]
SETTINGS = [
    Automaton(band=(0.5, 1.0)),
    Automaton(states=2, grid=4, band=(0.5, 1.1), band_of="normalized"),
    Automaton(states=4, grid=6, patch=1, temperature=0.5, wrap_states=False, start_states="uniform"),
    Automaton(states=2, grid=8, band=(0.12, 2.0), identity_bias=0.3, rule_pool=5, stride=2),
    Automaton(states=20, grid=5, patch=1, temperature=0.0, burn_in=0),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("automaton", SETTINGS, ids=str)
@pytest.mark.parametrize("frames", [4, 13])
def test_every_bit_and_every_record_is_that_of_the_compiled_roll_out(automaton, frames, device):
    made, tokens = automaton.rollouts(range(3, 13), frames=frames, seed=7, split="valid")
    again, same = TorchRoller(device).rollouts(automaton, range(3, 13), frames=frames, seed=7, split="valid")
    np.testing.assert_array_equal(tokens, same)
    for one, other in zip(made, again, strict=True):
        np.testing.assert_array_equal(one.frames_FGG, other.frames_FGG)
        assert one[1:] == other[1:]


def test_a_source_that_is_rolled_elsewhere_gives_the_same_rows(monkeypatch):
    from seedbed.sources.nca import NcaRows

    monkeypatch.setattr(module, "_BATCH", 8)
    source = NcaRows(states=2, grid=4, patch=2, seq_len=64)
    elsewhere = source.rolled_by(TorchRoller("cpu"))
    assert elsewhere.fingerprint() == source.fingerprint()
    for row, same in zip(
        source.rows(range(5, 20), seed=1, split="train"), elsewhere.rows(range(5, 20), seed=1, split="train"), strict=True
    ):
        np.testing.assert_array_equal(row.tokens_T, same.tokens_T)
        assert row.labels == same.labels and row.cost == same.cost


def test_a_device_that_computes_other_rows_is_found_out(monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 8)
    monkeypatch.setattr(TorchRoller, "_start", lambda self, a, keys: torch.zeros(len(keys), a.grid**2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="does not roll out the known rows"):
        TorchRoller("cpu")(Automaton(states=4, grid=6, burn_in=0), [0], frames=3, seed=0)


def test_a_band_out_of_reach_is_named(monkeypatch):
    monkeypatch.setattr(module, "MAX_TRIES", 30)
    with pytest.raises(ConfigError, match="lies in the band 0.28 to 0.285"):
        TorchRoller("cpu").rollouts(Automaton(states=2, grid=8, band=(0.28, 0.285)), [0], frames=10, seed=0)


def test_a_device_without_64_bit_floats_is_refused():
    with pytest.raises(ConfigError, match="mps"):
        TorchRoller("mps")
