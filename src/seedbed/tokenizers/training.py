"""Tokenizers trained on a user's text, all on bytes and without loss, and what a tokenizer makes of a text.

Papers: Sennrich et al. (2016), "Neural Machine Translation of Rare Words with Subword Units" (bpe); Kudo (2018), "Subword
Regularization" (unigram); Schuster and Nakajima (2012), "Japanese and Korean Voice Search" (wordpiece); Radford et al.
(2019), "Language Models are Unsupervised Multitask Learners", for writing each byte as a character. Letters: V pieces.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from seedbed.core.durable import check_place, write_whole
from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.protocols import Tokenizer
from seedbed.core.records import Document

if TYPE_CHECKING:
    import tokenizers

Kind = Literal["bpe", "unigram", "wordpiece"]
CONTINUING = "\u2040"  # "⁀", in front of a WordPiece piece within a word: no byte is written so, and no "##" of a text is one
WORD_CHARS = 64  # WordPiece takes the cube of a word's length, so longer words (DNA, base64) are cut first
LEARNT_CHARS = 1024  # the other trainers take its square: of longer words pieces are learnt from parts of this length


def train_tokenizer(
    texts: Iterable[str], *, kind: Kind, vocab_size: int, special_tokens: Sequence[str] = ("<|endoftext|>",)
) -> "tokenizers.Tokenizer":
    """Return a tokenizer of at most vocab_size ids, fewer if the texts have fewer pieces; special tokens have the first ids.

    The same texts give the same file, whatever RAYON_NUM_THREADS and TOKENIZERS_PARALLELISM say. Raises ConfigError for an
    unknown kind, too small a vocabulary or unfit special tokens, and DataError if there is no text.
    """
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    models = {"bpe": _bpe, "unigram": _unigram, "wordpiece": _wordpiece}
    if kind not in models:
        raise ConfigError(f"no tokenizer of kind {kind!r} can be trained; {nearest(kind, models)}")
    words: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    decoder: Any = decoders.ByteLevel()
    if kind == "wordpiece":
        cut = pre_tokenizers.Split(tokenizers.Regex(f".{{1,{WORD_CHARS}}}"), "isolated")
        words = pre_tokenizers.Sequence([words, cut])
        decoder = decoders.Sequence([decoders.Replace(CONTINUING, ""), decoder])
    specials = list(special_tokens)
    _check(kind, vocab_size=vocab_size, specials=specials, words=words)
    given = (t for t in texts if t)
    first = next(given, None)
    if first is None:
        raise DataError("there is no text to train a tokenizer on; give files that are not empty")
    try:
        model = models[kind](chain([first], given), words=words, vocab_size=vocab_size, specials=specials)
    except UnicodeEncodeError as e:
        raise DataError(
            f"a text to train a tokenizer on holds half a character (surrogate) at place {e.start}; mend that text"
        ) from None
    trained = tokenizers.Tokenizer(model)
    trained.pre_tokenizer, trained.decoder = words, decoder
    trained.add_special_tokens(specials)
    return trained


def save_tokenizer(tokenizer: "tokenizers.Tokenizer", out: Path, *, boundary: str) -> None:
    """Write the tokenizer to `out`, a .json file or a folder, and beside it a tokenizer_config.json that names the boundary.

    Raises RefusedError if one of the two is there already, ConfigError if the boundary is not a special token.
    """
    specials = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
    if boundary not in specials:
        raise ConfigError(f"the boundary {boundary!r} is not a special token of the tokenizer; {nearest(boundary, specials)}")
    file, config = check_tokenizer_place(out)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": boundary, "eos_token": boundary}
    settings_text = json.dumps({**settings, "clean_up_tokenization_spaces": False}, indent=1) + "\n"
    write_whole(config, settings_text, over=False)
    write_whole(file, tokenizer.to_str(pretty=True), over=False)


def check_tokenizer_place(out: Path) -> tuple[Path, Path]:
    """Return the two files of a tokenizer at `out`. Raises RefusedError if one is there already or cannot be made."""
    file = out if out.suffix == ".json" else out / "tokenizer.json"
    config = file.with_name("tokenizer_config.json")
    if out.suffix != ".json":
        check_place(out, folder=True)
    for place in (file, config):
        check_place(place)
    return file, config


@dataclass(frozen=True, kw_only=True)
class FirstLoss:
    """The first document that does not come back: where it differs, and up to 20 characters from there on."""

    document: str
    place: int  # in characters
    given: str
    returned: str


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    r"""What a tokenizer makes of documents. A word is a run of `\w`; boundaries are not counted as tokens.

    Scripts that write no spaces, or vowels as marks of their own, have words of other lengths: compare fertility between
    tokenizers, and languages by bytes per token.
    """

    documents: int
    bytes: int
    tokens: int
    words: int
    vocab_size: int
    lossless_documents: int
    first_loss: FirstLoss | None
    bytes_per_token: float
    fertility: dict[str, float | None]  # tokens per word, by language; None: no words
    bytes_per_token_by_language: dict[str, float | None]  # None: no tokens
    unused_pieces: int  # boundary and special tokens, which no text can use, left out
    first_unused: tuple[str, ...]  # the names of the first 20, if the tokenizer names its pieces


def check_tokenizer(tokenizer: Tokenizer, documents: Iterable[Document]) -> TokenizerReport:
    """Return what the tokenizer makes of the documents; a document's language is its meta "language".

    Raises DataError if the documents hold no text.
    """
    counts: dict[str, _Counts] = defaultdict(_Counts)
    used_V = np.zeros(tokenizer.vocab_size, dtype=bool)
    lossless, first_loss = 0, None
    for batch in _batches(documents, size=256):
        for document, ids_T in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            counts[str(document.meta.get("language", "unknown"))].add(document.text, tokens=len(ids_T))
            used_V[ids_T] = True
            returned = tokenizer.decode(ids_T)
            lossless += returned == document.text
            if returned != document.text and first_loss is None:
                first_loss = _difference(document, returned)
    total = sum(counts.values(), _Counts())
    if not total.tokens:
        raise DataError(
            f"the {total.documents} document(s) hold no text that gives a token; give text to hold the tokenizer against"
        )
    unused = _unused(tokenizer, used_V)
    return TokenizerReport(
        documents=total.documents,
        bytes=total.bytes,
        tokens=total.tokens,
        words=total.words,
        vocab_size=tokenizer.vocab_size,
        lossless_documents=lossless,
        first_loss=first_loss,
        bytes_per_token=total.bytes / total.tokens,
        fertility={name: c.tokens / c.words if c.words else None for name, c in sorted(counts.items())},
        bytes_per_token_by_language={name: c.bytes / c.tokens if c.tokens else None for name, c in sorted(counts.items())},
        unused_pieces=len(unused),
        first_unused=tuple(name for name in unused[:20] if name),
    )


def _check(kind: str, *, vocab_size: int, specials: list[str], words: Any) -> None:
    bytes_needed = 512 if kind == "wordpiece" else 256
    if vocab_size < bytes_needed + len(specials):
        why = "each byte at the start of a word and within one" if kind == "wordpiece" else "each byte"
        raise ConfigError(
            f"a {kind} tokenizer without loss needs an id for {why} and for each of the {len(specials)} special token(s); "
            f"set vocab_size to at least {bytes_needed + len(specials)}, not {vocab_size}"
        )
    for token in specials:
        # a special token that is one word could be a piece of text as well, and a text would then hold boundaries
        if specials.count(token) > 1 or len(words.pre_tokenize_str(token)) < 2:
            raise ConfigError(
                f"the special token {token!r} is given twice or could be a word of a text; give each once, and mix letters "
                "and signs, as in '<|endoftext|>'"
            )


def _bpe(texts: Iterator[str], *, words: Any, vocab_size: int, specials: list[str]) -> Any:
    from tokenizers import models, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=_alphabet(), show_progress=False
    )
    return _trained(models.BPE(), texts, words=words, trainer=trainer).model


def _unigram(texts: Iterator[str], *, words: Any, vocab_size: int, specials: list[str]) -> Any:
    from tokenizers import models, trainers

    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=_alphabet(), show_progress=False
    )
    trained = _trained(models.Unigram(), texts, words=words, trainer=trainer)
    scores = {piece: score for piece, score in json.loads(trained.to_str())["model"]["vocab"] if piece not in specials}
    # The trainer goes through words and bytes in the order of a hash that is drawn anew each time. So scores (log
    # probabilities) differ in their last digits, ids by chance among equals, and bytes that no text holds get the lowest score
    # plus 0.0001 for each such byte before. All three are undone here. (A score within 1e-12 of where it is rounded could
    # still fall on either side; no such text was found.)
    lowest = min(scores.values())
    level = {p: lowest if len(p) == 1 and s < lowest + 256 * 0.0001 else s for p, s in scores.items()}
    ranked = sorted(((p, round(s, 4)) for p, s in level.items()), key=lambda scored: (-scored[1], scored[0]))
    longer = [p for p, _ in ranked if len(p) > 1]
    kept = {*_alphabet(), *longer[: vocab_size - len(specials) - 256]}  # asked for bytes alone, the trainer gives more
    return models.Unigram([*((token, 0.0) for token in specials), *(scored for scored in ranked if scored[0] in kept)])


def _wordpiece(texts: Iterator[str], *, words: Any, vocab_size: int, specials: list[str]) -> Any:
    from tokenizers import models, trainers

    # Bytes within a word are handed in as if special: all 256 are then there, and in an order that is always the same.
    within = [CONTINUING + byte for byte in _alphabet()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*specials, *within],
        initial_alphabet=_alphabet(),
        continuing_subword_prefix=CONTINUING,
        show_progress=False,
    )
    settings: dict[str, Any] = {"continuing_subword_prefix": CONTINUING, "max_input_chars_per_word": WORD_CHARS}
    trained = _trained(models.WordPiece({}, unk_token="[UNK]", **settings), texts, words=words, trainer=trainer)
    # "[UNK]" is no piece, so that a byte without a piece would be an error and never a silent loss
    return models.WordPiece(trained.get_vocab(with_added_tokens=True), unk_token="[UNK]", **settings)


def _trained(model: Any, texts: Iterator[str], *, words: Any, trainer: Any) -> Any:
    import tokenizers
    from tokenizers import pre_tokenizers

    raw = tokenizers.Tokenizer(model)
    cut = pre_tokenizers.Split(tokenizers.Regex(f".{{1,{LEARNT_CHARS}}}"), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence([words, cut])
    raw.train_from_iterator(texts, trainer)
    return raw


def _alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


@dataclass
class _Counts:
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    words: int = 0

    def add(self, text: str, *, tokens: int) -> None:
        self.documents += 1
        self.bytes += len(text.encode())
        self.tokens += tokens
        self.words += sum(1 for _ in re.finditer(r"\w+", text))

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(
            self.documents + other.documents, self.bytes + other.bytes, self.tokens + other.tokens, self.words + other.words
        )


def _batches(documents: Iterable[Document], *, size: int) -> Iterator[list[Document]]:
    left = iter(documents)
    while batch := list(islice(left, size)):
        yield batch


def _difference(document: Document, returned: str) -> FirstLoss:
    text = document.text
    shorter = min(len(text), len(returned))
    place = next((i for i in range(shorter) if text[i] != returned[i]), shorter)
    return FirstLoss(document=document.id, place=place, given=text[place : place + 20], returned=returned[place : place + 20])


def _unused(tokenizer: Tokenizer, used_V: np.ndarray) -> list[str]:
    """The names of the pieces that no document used, in the order of their ids; empty names if the tokenizer has none."""
    ids = [int(i) for i in np.flatnonzero(~used_V) if i != tokenizer.boundary_id]
    return [piece for i in ids if (piece := tokenizer.piece(i)) is not None]
