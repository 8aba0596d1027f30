"""The remembered way must give the ids of the plain way, whatever the text; the plain way is `tokenizers` itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.sources.text import Text
from seedbed.tokenizers import remembered as module
from seedbed.tokenizers.remembered import Remembered, falls_at_spaces
from seedbed.tokenizers.training import train_tokenizer
from tokenizers import Tokenizer, normalizers, pre_tokenizers

PARTS = [
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "\x0b",
    "\x1c",
    "\x00",
    "\x7f",
    "\x85",
    "\xa0",
    "\u1680",
    "\u2003",
    "\u2028",
    "\u202f",
    "\u205f",
    "\u3000",
]
PARTS += [
    "'s",
    "'re",
    "'LL",
    "don't",
    "'",
    "''",
    "a",
    "Word",
    "42",
    "3.14",
    "_",
    "#!",
    "é",
    "ﬁ",
    "“",
    "”",
    "…",
    "日本",
    "ไทย",
    "²",
    "Ⅷ",
    "\u0301",
    "🙂",
    "\u200d",
]
PARTS += ["<|endoftext|>", "\ufeff", "\u180e", "ı", "İ"]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PARTS), max_size=25).map("".join))


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    texts = [d.text for name in ("prose", "code") for d in Text(path=f"builtin:{name}").all_documents()[:40]]
    made = train_tokenizer(texts, kind=request.param, vocab_size=900)
    made.encode_special_tokens = True
    return made


def _plain(tokenizer, texts):
    return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def test_it_is_for_byte_level_tokenizers_only(tokenizer):
    assert falls_at_spaces(tokenizer)
    for change in (
        lambda t: setattr(t, "normalizer", normalizers.NFC()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda t: t.add_tokens(["two words"]),
    ):
        other = Tokenizer.from_str(tokenizer.to_str())
        change(other)
        assert not falls_at_spaces(other)


@given(texts=st.lists(TEXTS, max_size=5))
@settings(max_examples=150, deadline=None)
def test_ids_are_those_of_the_plain_way(tokenizer, texts):
    remembered = Remembered(tokenizer)
    for _ in range(2):  # new, then known
        assert [x.tolist() for x in remembered.encode_batch(texts)] == _plain(tokenizer, texts)


def test_every_character_beside_a_space_and_a_letter_is_taken_as_the_tokenizer_takes_it(tokenizer):
    """All of the first planes' characters that are assigned or white, in front of and behind a space."""
    texts = [f"a{c} b a {c}b {c} {c}{c}x" for c in map(chr, range(0x3100)) if not 0xD800 <= ord(c) < 0xE000]
    assert [x.tolist() for x in Remembered(tokenizer).encode_batch(texts)] == _plain(tokenizer, texts)


def test_real_text_too_and_after_all_was_forgotten(tokenizer, monkeypatch):
    texts = [d.text for name in ("prose", "math", "code") for d in Text(path=f"builtin:{name}").all_documents()[100:130]]
    plain = _plain(tokenizer, texts)
    monkeypatch.setattr(module, "_MOST_BYTES", 2000)
    remembered = Remembered(tokenizer)
    for start in range(0, len(texts), 20):
        found = remembered.encode_batch(texts[start : start + 20])
        assert [x.tolist() for x in found] == plain[start : start + 20]
    assert all(x.dtype == np.int32 for x in found)
