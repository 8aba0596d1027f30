import math

import numpy as np
import pytest
import torch

from seedbed.core.errors import ConfigError
from seedbed.core.records import Batch, Document, Row
from seedbed.evaluate.bits_per_byte import BitsPerByte, items_of, summary
from seedbed.evaluate.frame_completion import frame_completion
from seedbed.evaluate.rule_floors import floors, floors_by_frame
from seedbed.evaluate.rule_inference import RuleInference
from seedbed.models.decoder import Decoder
from seedbed.scorers.own_run import ModelReader, OwnRun, _spans
from seedbed.tokenizers.bytes import Bytes


class Uniform:
    """A model that spreads its probability evenly over all 256 bytes."""

    tokenizer = Bytes()

    def score(self, texts):
        return [np.full(len(t.encode()), math.log(256)) for t in texts]


def test_a_uniform_model_over_bytes_has_eight_bits_per_byte():
    documents = [Document(id="a", text="héllo"), Document(id="b", text="x" * 50)]
    items = items_of(documents, Uniform().score([d.text for d in documents]))
    found = summary(items)
    assert found["bits_per_byte"] == pytest.approx(8, abs=1e-12)
    assert found["tokens"] == found["bytes"] == 56
    assert found["perplexity"] == pytest.approx(256)


def test_documents_weigh_by_their_bytes_not_alike():
    documents = [Document(id="a", text="a" * 10), Document(id="b", text="b" * 30)]
    found = summary(items_of(documents, [np.zeros(10), np.full(30, math.log(2))]))
    assert found["bits_per_byte"] == pytest.approx(0.75)


def _scorer(**settings):
    model = Decoder(num_layers=1, d_model=16, num_heads=2).build(vocab_size=257)
    model.initialize(seed=0, embedding_std=0.5)
    return ModelReader(model=model, tokenizer=Bytes(), seq_len=8, batch_size=3, **settings)


@pytest.mark.parametrize("stride", [None, 1, 3, 8])
def test_every_byte_is_scored_once_with_the_loss_it_has_in_its_window(stride):
    scorer = _scorer(stride=stride)
    texts = ["a", "hello world, this is a text", "", "äöü" * 5]
    losses = scorer.score(texts)
    assert [len(x) for x in losses] == [len(t.encode()) for t in texts]
    ids = [256, *texts[1].encode()]
    with torch.no_grad():

        def by_hand(i):
            span = next((s, e) for s, e in _spans(len(ids) - 1, 8, stride or 8) if s <= i < e)
            begin = max(0, span[1] - 8)
            logits = scorer.model(Batch(tokens_BT=torch.tensor([ids[begin : span[1]]]))).logits()[0]
            return float(-logits.log_softmax(-1)[i - begin, ids[i + 1]])

        np.testing.assert_allclose(losses[1], [by_hand(i) for i in range(len(ids) - 1)], atol=1e-5)


@pytest.mark.parametrize("text", ["", "a", "seven b", "eight by", "longer than two windows"])
def test_a_text_is_embedded_token_by_token_as_its_windows_are(text):
    reader = _scorer()
    states = reader.embed(["another", text, text])
    assert [len(x) for x in states] == [7, len(text), len(text)]
    np.testing.assert_array_equal(states[1], states[2])
    ids, by_hand = [256, *text.encode()], []
    with torch.no_grad():
        for i in range(0, len(ids), 8):
            by_hand.append(reader.model(Batch(tokens_BT=torch.tensor([ids[i : i + 8]]))).hidden_BTD[0])
    np.testing.assert_allclose(states[1], torch.cat(by_hand)[1:], atol=1e-5)
    assert reader.spent().positions > 0 == reader.spent().positions


class Lengths(torch.nn.Module):
    """Tells two classes apart by how long a window is."""

    def classes(self, outputs):
        rows, length = outputs.hidden_BTD.shape[:2]
        return torch.tensor([[float(length), 0.0]] * rows)


def test_a_text_of_several_windows_is_classified_by_their_mean_weighted_by_length():
    reader = _scorer(own={"topic": Lengths()})
    found = reader.classify(["abc", "a" * 10])
    share = torch.tensor([[4.0, 0.0], [8.0, 0.0], [3.0, 0.0]]).softmax(-1)[:, 0]
    np.testing.assert_allclose(found[:, 0], [share[0], (8 * share[1] + 3 * share[2]) / 11], rtol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


def test_what_a_model_cannot_be_asked_is_told():
    with pytest.raises(ConfigError, match="sees later positions, so it cannot score"):
        _scorer(causal=False).score(["a"])
    with pytest.raises(ConfigError, match="has no module '' that classifies"):
        _scorer().classify(["a"])
    with pytest.raises(ConfigError, match="did you mean 'topic'"):
        _scorer(own={"topic": Lengths(), "other": Lengths()}, how=OwnRun(term="topi")).classify(["a"])
    with pytest.raises(ConfigError, match="own_run needs `model`"):
        OwnRun().models  # noqa: B018


def test_more_context_is_what_a_stride_buys():
    spans = _spans(20, 8, 2)
    assert spans[0] == (0, 8) and all(e - s == 2 for s, e in spans[1:]) and spans[-1][1] == 20


def test_the_global_unigram_floor_by_hand():
    """One row of two frames (start, two patches, end); the second frame holds tokens 0 and 1."""
    row = np.array([[2, 0, 0, 3, 2, 0, 1, 3]])
    found = floors(row, unigram=np.array([0.75, 0.25, 1.0, 1.0]), frame_tokens=4)
    assert found["global unigram"] == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_a_frozen_automaton_is_known_to_the_previous_frame_floor():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 16, (20, 4))
    rows = np.concatenate([np.full((20, 1), 16), frame, np.full((20, 1), 17)] * 5, axis=1)
    found = floors(rows, unigram=np.full(18, 1 / 16), frame_tokens=6)
    assert found["previous frame"] < 0.1 < found["in-context unigram"] < found["global unigram"]


def test_a_rule_on_single_places_is_known_to_the_place_statistics():
    """Every token t becomes (5 t + 3) mod 16: nothing repeats in place, but what follows a token is always the same."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(20):
        patch = rng.integers(0, 16, 4)
        tokens = []
        for _ in range(20):
            tokens += [16, *patch, 17]
            patch = (5 * patch + 3) % 16
        rows.append(tokens)
    found = floors(np.array(rows), unigram=np.full(18, 1 / 16), frame_tokens=6)
    assert found["in-context place statistics"] < 0.6 * found["previous frame"]


def test_what_comes_back_after_some_frames_is_known_to_the_earlier_frame_floor():
    """Frames of random tokens with period 3: no frame looks like the one before, all like the third before."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(20):
        cycle = rng.integers(0, 16, (3, 4))
        rows.append(np.concatenate([[16, *cycle[t % 3], 17] for t in range(30)]))
    found = floors(np.array(rows), unigram=np.full(18, 1 / 16), frame_tokens=6)
    assert found["an earlier frame"] < 0.5 * found["previous frame"]


def test_a_rule_on_single_cells_is_known_to_the_cell_statistics_though_patches_hardly_repeat():
    """Nine states in 2x2 patches, every cell from s to s + 1: a row shows 80 of 6,561 patches, but every step of a cell."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(10):
        cells = rng.integers(0, 9, (4, 4))
        tokens = []
        for _ in range(20):
            tokens += [6561, *((cells @ 9 ** np.arange(4)).tolist()), 6562]
            cells = (cells + 1) % 9
        rows.append(tokens)
    found = floors(np.array(rows), unigram=np.full(6563, 1 / 6561), frame_tokens=6, cells=(9, 4))
    assert found["in-context cell statistics"] < 0.5 * found["in-context place statistics"]
    assert "in-context cell statistics" not in floors(np.array(rows), unigram=np.full(6563, 1 / 6561), frame_tokens=6)


def test_floors_by_frame_average_to_the_floors():
    rows = np.random.default_rng(0).integers(0, 4, (6, 23))
    by_frame = floors_by_frame(rows, unigram=np.full(4, 0.25), frame_tokens=6)
    whole = floors(rows, unigram=np.full(4, 0.25), frame_tokens=6)
    assert {len(v) for v in by_frame.values()} == {3}
    for name, nats_F in by_frame.items():
        assert whole[name] == pytest.approx((4 * nats_F[0] + 4 * nats_F[1] + 4 * nats_F[2]) / 12)


def test_frames_are_completed_from_the_true_frames_before():
    """A world of period two on a 2x2 grid, read cell by cell; the guesser knows it but for one cell of the last frame."""
    frames = np.array([[[0, 1, 1, 0], [1, 0, 0, 1]][t % 2] for t in range(4)])
    rows = np.concatenate([np.full((4, 1), 2), frames, np.full((4, 1), 3)], axis=1).reshape(1, -1)

    def choose(tokens, last):
        known = np.concatenate([rows[0, 1:], [0]])[None, tokens.shape[1] - last : tokens.shape[1]].copy()
        places = np.arange(tokens.shape[1] - last, tokens.shape[1])
        known[:, places == 19] = 1  # the true cell there is 0
        return known

    found = frame_completion(choose, rows, frame_tokens=6, decode=lambda p: p.astype(np.uint8).reshape(-1, 2, 2))
    assert [a.frame for a in found.teacher_forced] == [1, 1, 0] and found.teacher_forced[-1].cell == 0.75
    assert [a.cell for a in found.copied] == [0, 0, 0]
    assert (found.greedy.frame, found.greedy.cell, found.greedy_frame) == (0, 0.75, 3)


class Asked:
    """Rows of frames of four tokens, on 1x2 cells read one by one, and a model whose losses are given."""

    seed, seq_len, tokenizer, causal, own = 0, 11, None, True, {}
    frame_tokens, patch_ids, cells, described = 4, 16, (16, 1), {}

    def __init__(self, nll_RT):
        self.tokens_RT, self.nll_RT = np.tile([16, 1, 2, 17], (3, 3)), nll_RT

    @property
    def source(self):
        return self

    def decode(self, patches_RP):
        return patches_RP.astype(np.uint8).reshape(-1, 1, 2)

    def rows(self, split, *, count):
        return [Row(tokens_T=x[:-1], targets_T=x[1:]) for x in self.tokens_RT]

    def nats(self, rows):
        return self.nll_RT

    def likeliest(self, tokens_RT, last, *, below):
        return np.ones((len(tokens_RT), last), dtype=np.int64)

    def corpus(self, over):
        raise AssertionError

    documents = score = outputs = corpus


def _losses(loss):
    nll = np.full((3, 11), loss)
    nll[:, :3] = 99.0  # rest of frame 0
    nll[:, [3, 6, 7, 10]] = 99.0  # delimiters
    return nll


def test_delimiters_and_the_first_frame_are_not_scored():
    nll = _losses(1.0)
    nll[:, [8, 9]] = 0.5
    found = RuleInference().read(Asked(nll))
    numbers = RuleInference().summary(found.items)
    assert numbers == {"loss_nats": 0.75, "rows": 3, "tokens": 12} and found.facts["by_frame_nats"] == [1.0, 0.5]
    assert RuleInference().watched(Asked(nll)) == numbers, "on the way it is the same question"


def test_learned_means_a_tenth_of_a_nat_below_the_best_floor():
    best = min(RuleInference().read(Asked(_losses(1.0))).bar.levels.values())
    for below, met in ((0.1001, True), (0.0999, False), (-1.0, False)):
        bar = RuleInference().read(Asked(_losses(best - below))).bar
        assert bar.met is met and bar.level == pytest.approx(best - 0.1) and "did not learn" in bar.unmet
    assert RuleInference(margin=0.05).read(Asked(_losses(best - 0.0999))).bar.met


@pytest.mark.parametrize("rows", [0, 2**24 + 1])
def test_an_absurd_number_of_rows_is_refused(rows):
    from seedbed.core.errors import ConfigError

    with pytest.raises(ConfigError, match="rows"):
        RuleInference(rows=rows)


def test_what_is_read_of_a_text_is_what_the_recipe_says():
    part = BitsPerByte(valid_bytes=5)
    assert part.reads_test and next(iter(part.measures)) == "bits_per_byte" and part.measures["loss_nats"].per_token
