"""The same roll-outs in torch, many at a time on any device with 64-bit numbers: bit for bit what `Automaton.rollouts` makes.

Nothing in this room imports this file; `experiments` hands it to a source when a run computes on a GPU, so that the run feeds
itself. Integers stand for the unsigned words of the draws (their products wrap alike). Logits are sums of 16 products below
2^49, so float64 matrix products hold them exactly, in any order of addition. Selection measures gzip lengths on the host.
Letters: R rows, B candidates, F frames, C cells, N states, H hidden values, K the nine neighbors, W weights, T tokens.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from seedbed.core.errors import ConfigError
from seedbed.nca.automaton import MAX_TRIES, Automaton, Rollout
from seedbed.nca.complexity import SELECTION_FRAMES
from seedbed.nca.deflate import scratch
from seedbed.nca.rollout import START, STEPS, fixed_point
from seedbed.nca.rule import HIDDEN, HIDDEN_BITS, SQUEEZE, layer_scales, split_bits
from seedbed.nca.search import gzip_lengths
from seedbed.nca.tables import FRACTION_BITS, GUMBEL, INDEX_BITS, NORMAL, TRUNCATED_NORMAL, tables

_BATCH, _BATCH_CELLS = 1024, 2**18  # candidates rolled out at a time, and the cells of their grids together, at most
_CHECKED = 4  # rows of a first batch that are held against the compiled roll-out


def _signed(word: int) -> int:
    """The 64-bit word as torch's int64 holds it."""
    word = int(word) % 2**64
    return word - 2**64 if word >= 2**63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(words: Tensor, by: int) -> Tensor:
    """Shift right without the sign."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def mix(words: Tensor) -> Tensor:
    """The finalizer of splitmix64, as in `rule`."""
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def _table_indices(keys: Tensor, counters: Tensor) -> Tensor:
    """Table indices of the words (key, counter); `keys` broadcasts against `counters`."""
    return _shifted(mix(keys + _GOLDEN * (counters + 1)), 64 - INDEX_BITS)


class TorchRoller:
    """Rolls out on one device. Call it as `Automaton.rollouts`, with the automaton first; the first batch is checked."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        if self.device.type == "mps":
            raise ConfigError("the automaton in torch needs 64-bit floats, which mps lacks; roll out on cpu or cuda")
        self._normal, self._gumbel, self._truncated = (
            torch.from_numpy(tables()[i].astype(np.int64)).to(self.device) for i in (NORMAL, GUMBEL, TRUNCATED_NORMAL)
        )
        self._kept = lru_cache(maxsize=4)(self._batch)

    def __call__(
        self, automaton: Automaton, indices: Sequence[int], *, frames: int, seed: int, split: str = "train"
    ) -> tuple[list[Rollout], Int32[np.ndarray, "R T"]]:
        """Return what `automaton.rollouts` returns. Whole batches are made and the newest kept, so ask for neighbors."""
        size = _batch_size(automaton)
        batches = [self._kept(automaton, index // size, frames, seed, split) for index in indices]
        made = [batch[0][index % size] for batch, index in zip(batches, indices, strict=True)]
        tokens = [batch[1][index % size] for batch, index in zip(batches, indices, strict=True)]
        return made, np.stack(tokens) if tokens else np.empty((0, frames * automaton.patches.frame_tokens), dtype=np.int32)

    def _batch(self, automaton: Automaton, number: int, frames: int, seed: int, split: str) -> Any:
        size = _batch_size(automaton)
        indices = range(number * size, (number + 1) * size)
        made = self.rollouts(automaton, indices, frames=frames, seed=seed, split=split)
        if self._kept.cache_info().currsize == 0:
            _, known = automaton.rollouts(indices[:_CHECKED], frames=frames, seed=seed, split=split)
            if not np.array_equal(known, made[1][:_CHECKED]):
                raise ConfigError(f"{self.device} does not roll out the known rows; generate on the cpu and report this")
        return made

    @torch.no_grad()
    def rollouts(
        self, automaton: Automaton, indices: Sequence[int], *, frames: int, seed: int, split: str = "train"
    ) -> tuple[list[Rollout], Int32[np.ndarray, "R T"]]:
        """Return exactly these roll-outs; errors as for `Automaton.rollouts`."""
        a, p = automaton, automaton.patches
        rule_index_R, start_base_R, rule_base, first_start_base = a.addresses(indices, seed=seed, split=split)
        attempts_R = np.zeros(len(indices), dtype=np.int64)
        bytes_R = np.zeros(len(indices), dtype=np.int64)
        raw = 4 * SELECTION_FRAMES * p.per_frame
        low, high = a.ratio_band
        waiting, seen = np.arange(len(indices)), [2**62, 0]
        while len(waiting):  # several candidates of each row at a time; the first that fits counts
            each = int(min(max(1, _batch_size(a) // len(waiting)), MAX_TRIES - attempts_R[waiting].max()))
            rows_B = waiting.repeat(each)
            attempts_B = attempts_R[rows_B] + np.tile(np.arange(each), len(waiting))
            places_B = _places(rule_index_R[rows_B], attempts_B)
            rolled = self._rolled(a, places_B, int(rule_base), np.full(len(rows_B), first_start_base), split, SELECTION_FRAMES)
            lengths_B = np.empty(len(rows_B), dtype=np.int64)
            gzip_lengths(p.encode(rolled.reshape(-1, a.grid, a.grid)).reshape(len(rows_B), -1), scratch(), lengths_B)
            fits_WE = ((low < lengths_B / raw) & (lengths_B / raw < high)).reshape(len(waiting), each)
            found_W, first_W = fits_WE.any(1), fits_WE.argmax(1)
            attempts_R[waiting] += np.where(found_W, first_W, each)
            bytes_R[waiting] = lengths_B.reshape(len(waiting), each)[np.arange(len(waiting)), first_W]
            refused_B = lengths_B[~fits_WE.ravel()]
            if len(refused_B):
                seen = [min(seen[0], int(refused_B.min())), max(seen[1], int(refused_B.max()))]
            waiting = waiting[~found_W]
            if len(waiting) and attempts_R[waiting].max() >= MAX_TRIES:
                raise a.out_of_reach(*seen)
        places_R = _places(rule_index_R, attempts_R)
        frames_RFGG = self._rolled(a, places_R, int(rule_base), start_base_R, split, frames)
        encoded = p.encode(frames_RFGG.reshape(-1, a.grid, a.grid)).reshape(len(indices), frames, -1)
        tokens_RT = np.stack([p.framed(row) for row in encoded]) if len(indices) else np.empty((0, 0), dtype=np.int32)
        return a.records(indices, frames_RFGG, bytes_R / raw, attempts_R + 1), tokens_RT

    def _rolled(
        self, a: Automaton, places_B: Int64[np.ndarray, "B"], rule_base: int, start_base_B: Any, split: str, frames: int
    ) -> Any:
        """Frames (B, F, G, G) of candidates at their places (see `_places`), as uint8 on the host."""
        places = torch.from_numpy(places_B).to(self.device)
        bases = torch.from_numpy(np.asarray(start_base_B, dtype=np.uint64).view(np.int64)).to(self.device)
        table_BKNH, out_BHN = self._rules(a, mix(places + _signed(rule_base)), split)
        keys_B = mix(places + bases)
        grid_BC = self._start(a, keys_B)
        temperature, bias = fixed_point(a.temperature, a.identity_bias)
        kept, update = [], 0
        for f in range(frames):
            for _ in range(a.burn_in if f == 0 else a.stride):
                step_keys_B = mix(keys_B ^ mix(torch.tensor(_signed(int(STEPS) + update), device=self.device)))
                grid_BC = self._updated(a, grid_BC, table_BKNH, out_BHN, step_keys_B, temperature, bias)
                update += 1
            kept.append(grid_BC.to(torch.uint8))
        return torch.stack(kept, dim=1).cpu().numpy().reshape(len(places_B), frames, a.grid, a.grid)

    def _rules(self, a: Automaton, keys_B: Tensor, split: str) -> tuple[Tensor, Tensor]:
        """The composed tables (B, 9, N, 16) in int64 and the last layers (B, 16, N) in float64."""
        n = a.states
        channels = n + 2 if a.wrap_states else n
        sizes = [9 * channels * SQUEEZE, SQUEEZE * HIDDEN, HIDDEN * n]
        scales_W = torch.from_numpy(layer_scales(n, a.wrap_states).repeat(sizes)).to(self.device)
        counters_W = torch.arange(sum(sizes), device=self.device)
        indices_BW = _table_indices(keys_B[:, None], counters_W)
        bits, mask = split_bits(split)
        indices_BW[:, 0] = (indices_BW[:, 0] & ~mask) | bits
        weights_BW = (self._truncated[indices_BW] * scales_W + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS
        first, second, third = weights_BW.split(sizes, dim=1)
        first_BKCS = first.view(-1, 9, channels, SQUEEZE)
        if a.wrap_states:  # channels are [n-1, 0..n-1, 0]
            merged_BKNS = first_BKCS[:, :, 1:-1].clone()
            merged_BKNS[:, :, 0] += first_BKCS[:, :, -1]
            merged_BKNS[:, :, -1] += first_BKCS[:, :, 0]
        else:
            merged_BKNS = first_BKCS
        second_BSH = second.view(-1, 1, 1, SQUEEZE, HIDDEN)
        total_BKNH = sum(merged_BKNS[..., q, None] * second_BSH[:, :, :, q] for q in range(SQUEEZE))
        drop = 2 * FRACTION_BITS - HIDDEN_BITS
        return (total_BKNH + (1 << (drop - 1))) >> drop, third.view(-1, HIDDEN, n).double()

    def _start(self, a: Automaton, keys_B: Tensor) -> Tensor:
        n, cells = a.states, a.grid**2
        keys_B1 = mix(keys_B ^ _signed(int(START)))[:, None]
        noise_BCN = self._gumbel[_table_indices(keys_B1, n + torch.arange(cells * n, device=self.device))].view(-1, cells, n)
        if a.start_states == "uniform":
            return noise_BCN.argmax(-1)
        logits_BN = self._normal[_table_indices(keys_B1, torch.arange(n, device=self.device))]
        return (noise_BCN + logits_BN[:, None]).argmax(-1)

    def _updated(
        self, a: Automaton, grid_BC: Tensor, table_BKNH: Tensor, out_BHN: Tensor, keys_B: Tensor, temperature: int, bias: int
    ) -> Tensor:
        """One update. argmax takes the first of equal values, as the compiled one does."""
        side, n, rows = a.grid, a.states, len(grid_BC)
        grid_BGG = grid_BC.view(rows, side, side)
        hidden_BCH = torch.zeros(rows, side * side, HIDDEN, dtype=torch.int64, device=self.device)
        for k in range(9):
            near_BC = torch.roll(grid_BGG, shifts=(1 - k // 3, 1 - k % 3), dims=(1, 2)).reshape(rows, -1)
            hidden_BCH += table_BKNH[:, k].gather(1, near_BC[..., None].expand(-1, -1, HIDDEN))
        logits_BCN = torch.bmm(hidden_BCH.clamp_(min=0).double(), out_BHN).long()
        if bias:
            logits_BCN.scatter_add_(2, grid_BC[..., None], torch.full_like(grid_BC[..., None], bias))
        if temperature:
            counters = torch.arange(side * side * n, device=self.device)
            logits_BCN += self._gumbel[_table_indices(keys_B[:, None], counters)].view(rows, -1, n) * temperature
        return logits_BCN.argmax(-1)


def _batch_size(automaton: Automaton) -> int:
    return max(1, min(_BATCH, _BATCH_CELLS // automaton.grid**2))


def _places(rule_index: Any, attempts: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
    """What is added to a base to get the key of (rule index, attempt)."""
    with np.errstate(over="ignore"):
        number = rule_index.astype(np.uint64) * np.uint64(MAX_TRIES) + attempts.astype(np.uint64)
        return (number * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)
