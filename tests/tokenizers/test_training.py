import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.core.errors import ConfigError, DataError, RefusedError
from seedbed.core.protocols import Tokenizer
from seedbed.core.records import Document
from seedbed.tokenizers.bytes import Bytes
from seedbed.tokenizers.file import TokenizerFile
from seedbed.tokenizers.training import check_tokenizer, save_tokenizer, train_tokenizer
from tests.conftest import SHARED

KINDS = ("bpe", "unigram", "wordpiece")
WORDS = " ".join(a + b for a in ("walk", "talk", "jump", "play", "work") for b in ("", "ed", "ing", "er", "s"))
TEXTS = [f"## {WORDS}\n\n\nThe cat's hat, the rat's bat:  a é 🎉 日本\t\0 <|endoftext|>\r\n", "that hat", ""]
SPECIALS = ("<|endoftext|>", "<|user|>", "[CLS]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    def one(kind):
        folder = tmp_path_factory.mktemp(kind)
        made = train_tokenizer(TEXTS, kind=kind, vocab_size=560, special_tokens=SPECIALS)
        save_tokenizer(made, folder, boundary=SPECIALS[0])
        return TokenizerFile(path=str(folder))

    return {kind: one(kind) for kind in KINDS}


PIECES = [
    "##",
    "\u2040",
    "\u2581",
    "\u0120",
    *SPECIALS,
    "[UNK]",
    "\0",
    "\n\n\n",
    " ",
    "   ",
    "\r\n",
    "\u00a0",
    "🎉",
    "👩‍👩‍👧",
    "'s",
    "x" * 70,
]


@given(st.lists(st.one_of(st.text(max_size=8), st.sampled_from(PIECES)), max_size=12).map("".join))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back_from_every_kind_and_holds_no_special_token(trained, text):
    for part in [*trained.values(), Bytes()]:
        ids = part.encode(text)
        assert part.decode(ids) == text
        assert not np.isin(ids, range(3)).any() or isinstance(part, Bytes), "the first three ids are the special tokens"


def test_every_character_of_unicode_comes_back(trained):
    text = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)[:: 1 + 0x110000 // 20_000]
    for part in trained.values():
        assert part.decode(part.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_first_then_all_bytes_and_pieces_shorten_the_text(kind, trained):
    part = trained[kind]
    assert part.boundary_id == 0 and part.special_tokens["bos_token"] == SPECIALS[0]
    assert [part.piece(i) for i in range(3)] == [None] * 3
    assert 3 + 256 + 10 < part.vocab_size <= 560
    assert {part.piece(i) for i in range(3, part.vocab_size)} >= {"a", "\u0100", "\u0143"}
    assert len(part.encode(TEXTS[0])) < 0.8 * len(TEXTS[0].encode())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_file(kind):
    """Each training in the process goes through its hash tables in another order."""
    files = {train_tokenizer(TEXTS, kind=kind, vocab_size=530).to_str() for _ in range(4)}
    assert len(files) == 1
    assert train_tokenizer(TEXTS[1:], kind=kind, vocab_size=530).to_str() not in files


def test_the_first_pair_that_is_merged_is_the_most_frequent():
    made = train_tokenizer(["xy xy xy", " zz"], kind="bpe", vocab_size=258)
    assert made.id_to_token(257) == "xy" and made.get_vocab_size() == 258


def test_words_without_end_do_not_take_for_ever():
    made = train_tokenizer(["ACGT" * 10], kind="wordpiece", vocab_size=600)
    ids = made.encode("ACGT" * 5000).ids
    assert made.decode(ids) == "ACGT" * 5000


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'unigram'"):
        train_tokenizer(TEXTS, kind="unigrams", vocab_size=300)
    with pytest.raises(ConfigError, match="at least 257, not 256"):
        train_tokenizer(TEXTS, kind="bpe", vocab_size=256)
    with pytest.raises(ConfigError, match=r"start of a word and within one.*at least 513, not 512"):
        train_tokenizer(TEXTS, kind="wordpiece", vocab_size=512)
    for kind, smallest in (("bpe", 257), ("unigram", 257), ("wordpiece", 513)):
        assert train_tokenizer(TEXTS, kind=kind, vocab_size=smallest).get_vocab_size() == smallest
    for specials in (["user"], ["<|"], ["<a>", "<a>"], [""], [" the"]):
        with pytest.raises(ConfigError, match="is given twice or could be a word"):
            train_tokenizer(TEXTS, kind="bpe", vocab_size=300, special_tokens=specials)


def test_no_text_and_half_characters_are_data_errors():
    for texts in ([], ["", ""]):
        with pytest.raises(DataError, match="no text to train"):
            train_tokenizer(texts, kind="unigram", vocab_size=300)
    with pytest.raises(DataError, match=r"half a character \(surrogate\) at place 1"):
        train_tokenizer(["fine", "a\ud800"], kind="bpe", vocab_size=300)


def test_an_error_of_the_reader_comes_through():
    def texts():
        yield "a"
        raise DataError("line 2 is broken")

    with pytest.raises(DataError, match="line 2 is broken"):
        train_tokenizer(texts(), kind="bpe", vocab_size=300)


def test_a_tokenizer_is_saved_once_as_a_file_or_in_a_folder(tmp_path):
    made = train_tokenizer(TEXTS, kind="bpe", vocab_size=300, special_tokens=SPECIALS)
    save_tokenizer(made, tmp_path / "a/mine.json", boundary="[CLS]")
    save_tokenizer(made, tmp_path / "b", boundary="[CLS]")
    one, two = TokenizerFile(path=str(tmp_path / "a/mine.json")), TokenizerFile(path=str(tmp_path / "b"))
    assert one.fingerprint() == two.fingerprint() and one.boundary_id == 2
    assert one.special_tokens == {"bos_token": "[CLS]", "eos_token": "[CLS]"}
    (tmp_path / "b/tokenizer.json").unlink()
    for taken in ("a/mine.json", "a/other.json", "b"):
        with pytest.raises(RefusedError, match="nothing is overwritten"):
            save_tokenizer(made, tmp_path / taken, boundary="[CLS]")
    with pytest.raises(ConfigError, match=r"'\[CSL\]' is not a special token.*did you mean '\[CLS\]'"):
        save_tokenizer(made, tmp_path / "c", boundary="[CSL]")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


class LowerCase(Tokenizer):
    """Letters a to z are ids 0 to 25, the boundary is 26; capitals come back small, and "" for all else."""

    vocab_size, boundary_id = 27, 26

    def encode_batch(self, texts: Sequence[str]):
        return [np.array([ord(c) - 97 for c in t.lower() if "a" <= c <= "z"], dtype=np.int32) for t in texts]

    def encode(self, text: str):
        return self.encode_batch([text])[0]

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids)

    def piece(self, id: int):
        return None if id == 25 else chr(97 + id)

    def fingerprint(self) -> str:
        return "lower"


def test_a_report_by_hand():
    documents = [
        Document(id="1", text="ab", meta={"language": "xx"}),  # 2 tokens, 1 word, 2 bytes
        Document(id="2", text="abC d", meta={"language": "xx"}),  # 4 tokens, 2 words, 5 bytes; "abcd" comes back
        Document(id="3", text="éz"),  # 1 token, 1 word, 3 bytes
        Document(id="4", text="!", meta={"language": "yy"}),  # nothing
    ]
    report = check_tokenizer(LowerCase(), documents)
    assert (report.documents, report.bytes, report.tokens, report.words, report.vocab_size) == (4, 11, 7, 4, 27)
    assert report.lossless_documents == 1 and report.bytes_per_token == 11 / 7
    assert asdict(report)["first_loss"] == {"document": "2", "place": 2, "given": "C d", "returned": "cd"}
    assert report.fertility == {"unknown": 1.0, "xx": 2.0, "yy": None}
    assert report.bytes_per_token_by_language == {"unknown": 3.0, "xx": 7 / 6, "yy": None}
    assert report.unused_pieces == 21, "25 pieces have a name or are used (z has none but is used); a, b, c, d, z are used"
    assert "".join(report.first_unused) == "efghijklmnopqrstuvwx"
    assert json.loads(json.dumps(asdict(report), allow_nan=False))["fertility"]["xx"] == 2.0


def test_a_text_that_is_cut_short_is_a_loss_at_its_end():
    report = check_tokenizer(LowerCase(), [Document(id="1", text="ab!")])
    assert asdict(report.first_loss) == {"document": "1", "place": 2, "given": "!", "returned": ""}


def test_bytes_lose_nothing_and_have_no_names():
    report = check_tokenizer(Bytes(), [Document(id=str(i), text="aé") for i in range(300)])
    assert report.documents == report.lossless_documents == 300 and report.first_loss is None
    assert report.unused_pieces == 253 and report.first_unused == () and report.bytes_per_token == 1.0


def test_nothing_to_check_is_a_data_error():
    for documents in ([], [Document(id="1")]):
        with pytest.raises(DataError, match=rf"the {len(documents)} document\(s\) hold no text"):
            check_tokenizer(Bytes(), documents)


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_on_what_was_trained_knows_the_special_tokens(kind, trained):
    report = check_tokenizer(trained[kind], [Document(id="1", text=TEXTS[0])])
    assert report.lossless_documents == 1
    assert len(report.first_unused) == 20 and not set(SPECIALS) & set(report.first_unused)
    used = len(set(trained[kind].encode(TEXTS[0]).tolist()))
    assert report.unused_pieces == report.vocab_size - len(SPECIALS) - used


def test_a_tokenizer_of_english_breaks_other_languages_into_more_tokens(tmp_path):
    file = SHARED / "data/udhr/udhr.jsonl.zst"
    if not file.is_file():
        pytest.skip(f"{file} is not on this machine")
    zstandard = pytest.importorskip("zstandard")
    with file.open("rb") as opened:
        lines = zstandard.ZstdDecompressor().stream_reader(opened, read_across_frames=True).read().decode().splitlines()
    rows = {row["lang"]: row["text"] for row in map(json.loads, lines)}
    english = rows["eng"]
    save_tokenizer(train_tokenizer([english], kind="bpe", vocab_size=800), tmp_path / "t", boundary="<|endoftext|>")
    documents = [Document(id=name, text=rows[name], meta={"language": name}) for name in ("eng", "fra", "fin")]
    report = check_tokenizer(TokenizerFile(path=str(tmp_path / "t")), documents)
    assert report.lossless_documents == 3
    assert 1.5 * report.fertility["eng"] < report.fertility["fra"] < report.fertility["fin"]
    assert report.bytes_per_token_by_language["eng"] > report.bytes_per_token_by_language["fin"]
