from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from seedbed.core.draws import stream
from seedbed.core.errors import ConfigError, RunFailedError
from seedbed.core.protocols import Tokenizer
from seedbed.core.records import Batch
from seedbed.models.cache import Recomputed, stepper
from seedbed.models.decoder import Decoder
from seedbed.tokenizers.bytes import Bytes
from seedbed.tokenizers.integers import Integers
from seedbed.writers.sample import Sample, picked

NUMBERS = Integers(vocab=16)  # a text of numbers shows every id
PROMPTS = ["1 2 3", "", "4", "7 7 7 7 7 7", "15 0 15 0 15 0 15 0 1 2 3 4"]


def _model(vocab_size=17, **settings):
    model = Decoder(num_layers=2, d_model=16, num_heads=2, **settings).build(vocab_size=vocab_size)
    model.initialize(seed=0, embedding_std=0.5)
    return model.double()


def _writer(model=None, tokenizer=NUMBERS, seq_len=8, **settings):
    return Sample(**settings).opened(model=model or _model(), stepper=_stepper, tokenizer=tokenizer, seq_len=seq_len)


def _stepper(model):
    """The decoder's, or the one that a test has made."""
    return model.made() if hasattr(model, "made") else stepper(model)


def test_a_sample_repeats_with_its_seed_and_differs_with_another():
    writer = _writer()
    assert writer.write(["1 2"], new_tokens=12, seed=1) == writer.write(["1 2"], new_tokens=12, seed=1)
    assert writer.write(["1 2"], new_tokens=12, seed=1) != writer.write(["1 2"], new_tokens=12, seed=2)


def _probabilities(logits_V, *, temperature, top_k, top_p):
    """Probabilities of the next id, one at a time and by the book."""
    order = sorted(range(len(logits_V)), key=lambda id: (-logits_V[id], id))
    if temperature == 0:
        return np.eye(len(logits_V))[order[0]]
    weights = np.exp((logits_V - logits_V.max()) / temperature)
    if top_k is not None:
        order = [id for id in order if logits_V[id] >= logits_V[order[min(top_k, len(order)) - 1]]]
    if top_p is not None:
        mass = np.cumsum([weights[id] for id in order]) / sum(weights[id] for id in order)
        order = order[: int(np.searchsorted(mass, top_p)) + 1]
    kept = np.zeros(len(weights))
    kept[order] = weights[order]
    return kept / kept.sum()


def _reference(writer, prompt, number, *, new_tokens, seed, told=None):
    """The ids of a sample, with all shown again in each step; `told`: go along these ids, return draws and probabilities."""
    draws = stream(seed, "sample", prompt, number)
    ids, shown, steps = [], [16, *NUMBERS.encode(prompt).tolist()][-writer.seq_len :], []
    settings = {"temperature": writer.temperature, "top_k": writer.top_k, "top_p": writer.top_p}
    for t in range(new_tokens):
        outputs = writer.model(Batch(tokens_BT=torch.tensor(shown)[None]))
        probabilities_V = _probabilities(writer.model.head(outputs.hidden_BTD)[0, -1].numpy(), **settings)
        draw = draws.random()
        steps.append((draw, probabilities_V))
        id = int(np.searchsorted(np.cumsum(probabilities_V), draw, side="right")) if told is None else told[t]
        if id == 16 or (told is not None and t + 1 == len(told)):
            break
        ids.append(id)
        shown = [*shown, id]
        shown = shown if len(shown) <= writer.seq_len else shown[-(writer.seq_len // 2) :]
    return ids if told is None else steps


def _check_same(writer, prompt, number, text, expected, *, new_tokens, seed):
    """Texts are equal, or where they part the draw lies within 1e-5 of the border between the two ids."""
    if text == expected:
        return
    one, other = ([*map(int, x.split()), 16] for x in (text, expected))
    place = next(t for t, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    low, high = sorted((one[place], other[place]))
    told = [*one[:place], one[place]]
    draw, probabilities_V = _reference(writer, prompt, number, new_tokens=new_tokens, seed=seed, told=told)[place]
    borders = np.cumsum(probabilities_V)[low:high]
    assert np.abs(borders - draw).max() < 1e-5, f"{prompt!r}, sample {number}: {text!r} is not {expected!r}"


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.0},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.7},
        {"temperature": 1.3, "top_p": 0.7, "top_k": 5},
        {"seq_len": 64},
    ],
    ids=str,
)
@torch.no_grad()
def test_no_company_changes_a_text(settings):
    """Batch sizes 1, 3 and all, prompts in another order, a prompt alone, one sample or four, and the path without a cache,
    against a reference that shows each row anew and picks by the book; in float64."""
    asked = {"new_tokens": 14, "seed": 3}
    writer = _writer(model=_model(window=6, num_kv_heads=1), **settings)
    expected = {(p, n): " ".join(map(str, _reference(writer, p, n, **asked))) for p in PROMPTS for n in range(4)}
    assert len(set(expected.values())) >= (3 if writer.temperature == 0 else 15)  # of 20 texts
    uncached = SimpleNamespace(
        parameters=writer.model.parameters, eval=writer.model.eval, made=lambda: Recomputed(writer.model)
    )
    runs = [
        (PROMPTS, 4, {"batch_size": 1}),
        (PROMPTS, 4, {"batch_size": 3}),
        (PROMPTS, 4, {"batch_size": 100}),
        (PROMPTS[::-1], 4, {"batch_size": 9}),
        (PROMPTS, 1, {"batch_size": 100}),
        (PROMPTS[3:4], 4, {}),
        (PROMPTS, 4, {"model": uncached}),
    ]
    for prompts, samples, changed in runs:
        texts = _writer(**{"model": writer.model, **settings, **changed}).write(prompts, samples=samples, **asked)
        assert len(texts) == len(prompts) * samples
        for row, text in enumerate(texts):
            prompt, number = prompts[row // samples], row % samples
            _check_same(writer, prompt, number, text, expected[prompt, number], **asked)


@torch.no_grad()
def test_the_comparison_above_takes_a_tie_and_nothing_else():
    writer = _writer(temperature=1.0)
    text = writer.write(["1"], new_tokens=6, seed=5)[0]
    ids = [int(n) for n in text.split()]
    assert len(ids) == 6
    _check_same(writer, "1", 0, text, text, new_tokens=6, seed=5)
    for other in (ids[:2], [*ids[:2], (ids[2] + 1) % 16, *ids[3:]]):
        with pytest.raises(AssertionError, match="is not"):
            _check_same(writer, "1", 0, text, " ".join(map(str, other)), new_tokens=6, seed=5)
    borders = np.cumsum(_reference(writer, "1", 0, new_tokens=1, seed=0, told=[3])[0][1])[:15]  # the last is 14 from 15
    near = (np.abs(borders - stream(seed, "sample", "1", 0).random()) < 8e-6 for seed in range(100_000))
    seed, at = next((seed, int(hits.argmax())) for seed, hits in enumerate(near) if hits.any())
    _check_same(writer, "1", 0, str(at), str(at + 1), new_tokens=1, seed=seed)


def test_a_prompt_given_twice_gets_further_samples():
    writer = _writer()
    three = writer.write(["5"], samples=3, new_tokens=9, seed=0)
    assert len(set(three)) == 3
    assert writer.write(["5", "6", "5", "5"], new_tokens=9, seed=0) == [
        three[0],
        *writer.write(["6"], new_tokens=9, seed=0),
        *three[1:],
    ]


def test_fewer_new_tokens_give_the_beginning():
    long, short = (_writer(end_at_boundary=False).write(["5"], new_tokens=n, seed=0)[0].split() for n in (30, 11))
    assert len(long) == 30
    assert short == long[:11]


def test_threads_change_no_text_and_are_given_back():
    writer = _writer(batch_size=4)
    before = torch.get_num_threads()
    try:
        texts = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            texts.append(writer.write(PROMPTS, samples=4, new_tokens=12, seed=0))
            with ThreadPoolExecutor(1) as new:
                assert new.submit(torch.get_num_threads).result() == torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert texts[0] == texts[1] == texts[2]


def test_the_boundary_ends_a_text_unless_it_is_never_picked():
    ending, endless = (_writer(end_at_boundary=ends).write([""], samples=40, new_tokens=40, seed=0) for ends in (True, False))
    assert {len(text.split()) for text in endless} == {40}
    assert min(len(text.split()) for text in ending) < 40


def test_ids_that_no_text_has_are_never_picked():
    """A model may have more rows than the tokenizer has ids."""
    model = _model(vocab_size=40)
    with torch.no_grad():
        model.head.weight[17:] *= 50
    texts = _writer(model=model, temperature=2.0).write(["1"], samples=20, new_tokens=20, seed=0)
    assert {int(n) for text in texts for n in text.split()} <= set(range(16))


def test_no_prompts_and_no_tokens_give_no_texts():
    assert _writer(model=_model(mask="bidirectional")).write([], new_tokens=5, seed=0) == []
    assert _writer().write(["1", "2"], samples=2, new_tokens=0, seed=0) == [""] * 4


def test_a_draw_falls_on_the_id_whose_share_of_the_unit_it_meets():
    logits_NV = torch.tensor([[0.1, 0.0, 0.6, 0.3]], dtype=torch.float64).log().expand(8, -1)
    draws_N = torch.tensor([0.0, 0.0999, 0.1001, 0.6999, 0.7001, 0.9999, 1 - 2**-53, 0.5], dtype=torch.float64)
    assert picked(logits_NV, draws_N, temperature=1).tolist() == [0, 0, 2, 2, 3, 3, 3, 2]


def test_a_draw_on_a_border_falls_on_the_next_id():
    logits_NV = torch.zeros(4, 4, dtype=torch.float64)
    draws_N = torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    assert picked(logits_NV, draws_N, temperature=1).tolist() == [0, 1, 2, 3]


def test_no_draw_falls_on_an_id_of_no_weight():
    """Neither 0 nor the largest draw, whatever the total of the weights is."""
    n = 2000
    logits_NV = torch.full((n, 5), -torch.inf, dtype=torch.float64)
    logits_NV[:, 1:4] = torch.from_numpy(np.random.default_rng(0).normal(size=(n, 3)))
    for draw, id in ((0.0, 1), (1 - 2**-53, 3)):
        assert set(picked(logits_NV, torch.full((n,), draw, dtype=torch.float64), temperature=0.7).tolist()) == {id}


FIVE = np.array([0.15, 0.3, 0.05, 0.3, 0.2])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.15, 0.3, 0.05, 0.3, 0.2]),
        ({"temperature": 0.5}, [0.0225, 0.09, 0.0025, 0.09, 0.04]),
        ({"top_k": 3}, [0, 0.3, 0, 0.3, 0.2]),
        ({"top_k": 1}, [0, 0.3, 0, 0.3, 0]),  # equals of the last stay
        ({"top_p": 0.3}, [0, 1, 0, 0, 0]),  # of equals the lowest id
        ({"top_p": 0.31}, [0, 0.3, 0, 0.3, 0]),
        ({"top_p": 0.79}, [0, 0.3, 0, 0.3, 0.2]),
        ({"top_p": 0.81}, [0.15, 0.3, 0, 0.3, 0.2]),
        ({"top_k": 3, "top_p": 0.74}, [0, 0.3, 0, 0.3, 0]),  # 0.6 of the 0.8 that top_k leaves
        ({"top_k": 3, "top_p": 0.76}, [0, 0.3, 0, 0.3, 0.2]),
        ({"top_p": 1e-9}, [0, 1, 0, 0, 0]),
    ],
    ids=str,
)
def test_ids_come_as_often_as_their_probability(settings, expected):
    n = 20_000
    draws_N = torch.from_numpy(np.random.default_rng(0).random(n))
    logits_NV = torch.from_numpy(np.log(FIVE)).expand(n, -1)
    counts = np.bincount(picked(logits_NV, draws_N, **{"temperature": 1.0, **settings}).numpy(), minlength=5)
    expected = np.array(expected) / sum(expected)
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(expected))
    kept = expected > 0
    assert kept.sum() == 1 or chisquare(counts[kept], n * expected[kept]).pvalue > 1e-3


def test_all_of_the_mass_and_all_ids_are_the_plain_sample():
    plain = _writer().write(PROMPTS, samples=3, new_tokens=12, seed=0)
    for settings in ({"top_p": 1.0}, {"top_k": 17}, {"top_k": 500, "top_p": 1}):
        assert _writer(**settings).write(PROMPTS, samples=3, new_tokens=12, seed=0) == plain
    assert _writer(top_p=0.5).write(PROMPTS, samples=3, new_tokens=12, seed=0) != plain


def test_temperature_zero_takes_the_lowest_of_the_likeliest():
    logits_NV = torch.tensor([[0.0, 3.0, 3.0, -1.0], [5.0, 5.0, 5.0, 5.0]], dtype=torch.float64)
    assert picked(logits_NV, torch.tensor([0.9, 0.9], dtype=torch.float64), temperature=0).tolist() == [1, 0]
    assert picked(logits_NV, torch.tensor([0.4, 0.9], dtype=torch.float64), temperature=1e-300).tolist() == [1, 3]


def test_logits_that_are_not_finite_are_an_error():
    model = _model()
    with torch.no_grad():
        model.head.weight[3] = torch.nan
    with pytest.raises(RunFailedError, match="not finite"):
        _writer(model=model).write(["1"], new_tokens=2, seed=0)


class Scripted:
    """A model that writes given ids, one script a sample, and notes how many rows each step has."""

    def __init__(self, scripts, vocab_size):
        self.scripts, self.vocab_size, self.sizes = scripts, vocab_size, []

    def parameters(self):
        return iter([torch.zeros(1)])

    def eval(self):
        pass

    def made(self):
        return self

    def begin(self, prompts, *, samples, seq_len):
        self.rows_PS, self.t = torch.arange(len(prompts) * samples).view(len(prompts), samples), 0
        first = {self.scripts[n][0] for n in range(samples)}
        assert len(first) == 1, "samples of a prompt have the same logits behind it"
        self.logits_PV = self._logits(self.rows_PS[:, :1])[:, 0]
        return self

    def advance(self, ids_PS):
        self.sizes.append(self.rows_PS.numel())
        self.t += 1
        return self._logits(self.rows_PS)

    def keep(self, rows_PS):
        self.rows_PS = self.rows_PS.flatten()[rows_PS]

    def _logits(self, rows_PS):
        ids_PS = [
            [script[self.t] if self.t < len(script) else 0 for script in map(self.scripts.__getitem__, row)]
            for row in rows_PS.tolist()
        ]
        return torch.nn.functional.one_hot(torch.tensor(ids_PS), self.vocab_size) * 100.0


def _written(text, *, stop, new_tokens=None):
    ids = Bytes().encode(text).tolist()
    model = Scripted([ids], 257)
    texts = _writer(model=model, tokenizer=Bytes(), temperature=0, stop=stop).write(
        ["x"], new_tokens=new_tokens or len(ids), seed=0
    )
    return texts[0], len(model.sizes) + 1  # and how many ids were written


def test_a_text_is_cut_before_its_first_stop_text_and_ends_there():
    assert _written("one\ntwo\n\nthree", stop=["\n\n"]) == ("one\ntwo", len("one\ntwo\n\n"))
    assert _written("one\ntwo\n\nthree", stop=["\n\n", "two", "x"]) == ("one\n", len("one\ntwo"))
    assert _written("one", stop=["one!"]) == ("one", 3)
    assert _written("stop here", stop=["s"]) == ("", 1)
    assert _written("abcdefgh", stop=["cd"], new_tokens=3) == ("abc", 3)


def test_a_stop_text_may_lie_across_tokens_and_within_characters_of_many_bytes():
    assert _written("naïve – 10 € or so", stop=["€ o"]) == ("naïve – 10 ", len("naïve – 10 € o".encode()))
    assert _written("naïve – 10 €", stop=["–"]) == ("naïve ", len("naïve –".encode()))


class Words(Tokenizer):
    """Ids are pieces of several letters."""

    pieces = ("a", "abc", "b", "<>", "")
    vocab_size, boundary_id = 6, 5

    def encode_batch(self, texts):
        return [np.zeros(1, dtype=np.int32) for _ in texts]

    def decode(self, ids):
        return "".join(self.pieces[i] for i in np.asarray(ids).tolist())


def test_of_stop_texts_that_one_token_completes_the_one_that_starts_first_counts():
    for stop in (["b", "abc"], ["abc", "b"]):
        model = Scripted([[0, 1, 2, 2]], 6)
        assert _writer(model=model, tokenizer=Words(), temperature=0, stop=stop).write(["x"], new_tokens=4, seed=0) == ["a"]
    # "ab" is complete before "abc" could be
    model = Scripted([[0, 2, 0]], 6)
    assert _writer(model=model, tokenizer=Words(), temperature=0, stop=["aba", "b"]).write(["x"], new_tokens=3, seed=0) == ["a"]


def test_a_stop_text_of_many_empty_pieces_is_found_in_the_end():
    """The quick look at the last few ids misses it; the text is the same."""
    model = Scripted([[0, *[4] * 9, 2, 0, 0]], 6)
    assert _writer(model=model, tokenizer=Words(), temperature=0, stop=["ab"]).write(["x"], new_tokens=13, seed=0) == [""]


def test_stop_texts_cut_samples_and_change_nothing_before():
    plain = _writer(tokenizer=Bytes(), model=_model(vocab_size=257)).write(["ab", "c"], samples=8, new_tokens=30, seed=0)
    readable = [i for i in range(1, 25) if plain[0][i : i + 2].isprintable() and "\ufffd" not in plain[0][i : i + 2]]
    stop = [plain[0][readable[0] :][:2], "e"]
    cut = [min((text[: text.find(s)] for s in stop if s in text), key=len, default=text) for text in plain]
    assert cut != plain
    for batch_size in (1, 5, 100):
        writer = _writer(tokenizer=Bytes(), model=_model(vocab_size=257), stop=stop, batch_size=batch_size)
        assert writer.write(["ab", "c"], samples=8, new_tokens=30, seed=0) == cut


def test_rows_that_have_ended_leave_when_half_of_the_grid_will_do():
    """Of 8 samples, 3 end with their second id, then one more, then all but one."""
    lengths = (1, 9, 1, 3, 6, 6, 1, 6)
    scripts = [[7, *range(length - 1), 16] if length < 9 else [7, *range(9)] for length in lengths]
    model = Scripted(scripts, 17)
    texts = _writer(model=model, temperature=0).write(["1"], samples=8, new_tokens=10, seed=0)
    assert [len(text.split()) for text in texts] == [*lengths[:1], 10, *lengths[2:]]
    assert texts[4] == "7 0 1 2 3 4"
    assert model.sizes == [8, 8, 8, 4, 4, 4, 1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"stop": "\n"}, "list of texts"),
        ({"stop": ["a", ""]}, "none of them empty"),
        ({"batch_size": 0}, "batch_size"),
        ({"seq_len": 0}, "seq_len"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        _writer(**settings)


def test_what_cannot_be_written_is_refused():
    with pytest.raises(ConfigError, match=r"samples must lie in 1\.\.10\^6, got 0"):
        _writer().write(["1"], new_tokens=1, seed=0, samples=0)
    with pytest.raises(ConfigError, match="cannot continue a text"):
        _writer(model=_model(mask="bidirectional")).write(["1"], new_tokens=1, seed=0)
