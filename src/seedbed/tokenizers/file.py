"""Any tokenizer.json of the Hugging Face library `tokenizers`, with the settings that lie beside it."""

import codecs
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32

from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.json_files import parse_json
from seedbed.core.places import place
from seedbed.core.protocols import Neutral, Tokenizer
from seedbed.tokenizers.remembered import Remembered, falls_at_spaces

CONFIG, MAP, TEMPLATE = "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"
BOUNDARY_ROLES = ("bos_token", "eos_token", "cls_token", "sep_token")
BOUNDARY_NAMES = ("<|endoftext|>", "<s>", "<|begin_of_text|>", "</s>", "[CLS]", "[SEP]")


@dataclass(frozen=True, kw_only=True)
class TokenizerFile(Tokenizer):
    """A tokenizer as it was made, but for this: nothing is cut, padded or drawn, and special tokens in a text are text."""

    neutral: ClassVar[Neutral] = "another tokenizer is another vocabulary"
    path: str = place(default="")  # the file, or a folder that holds a tokenizer.json; read when first used
    boundary: str | None = None  # the special token in front of documents; None: as BOUNDARY_ROLES and _NAMES have it

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, or the number of pieces if that is more."""
        pieces = self._tokenizer.get_vocab(with_added_tokens=True)
        return max(len(pieces), max(pieces.values()) + 1)

    @cached_property
    def boundary_id(self) -> int:
        return self._special_ids[self._boundary]

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "T"]]:
        """Return the ids of each text.

        Raises DataError for a text that the tokenizer cannot take, or that it turns into the boundary itself.
        """
        try:
            ids = self._encode(texts)
        except Exception as e:  # the library raises nothing narrower
            raise DataError(
                f"{self._file} cannot encode a text ({e}); give text of whole characters (no half surrogates) that this "
                "tokenizer knows, or a tokenizer that knows every byte"
            ) from None
        for text, ids_T in zip(texts, ids, strict=True):
            if (ids_T == self.boundary_id).any():
                raise DataError(
                    f"{self._file} turns a piece of the text {text[:40]!r} into its boundary {self._boundary!r}, so the "
                    "text would fall into two documents; name another special token as the boundary (`boundary` in a recipe, "
                    "--boundary of a command), or mend the text"
                )
        return ids

    def decode(self, ids: Int32[np.ndarray, "T"]) -> str:
        """Return the text of the ids, spaces as they come; boundaries are left out, other special tokens are shown."""
        kept = [i for i in np.asarray(ids).tolist() if i != self.boundary_id]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def piece(self, id: int) -> str | None:
        """Return the piece of text that an id stands for, spelled as in the file; None for a special token or a gap."""
        piece = self._tokenizer.id_to_token(id)
        return None if piece in self._special_ids else piece

    @cached_property
    def special_tokens(self) -> Mapping[str, str]:
        """Special tokens by role, such as "bos_token", as the files beside the tokenizer have them."""
        given = {**self._beside(MAP), **self._beside(CONFIG)}
        named = {role: t["content"] if isinstance(t, dict) else t for role, t in given.items() if role.endswith("_token")}
        return {role: t for role, t in named.items() if isinstance(t, str)}

    @cached_property
    def chat_template(self) -> str | None:
        """The chat template; of several named ones "default". Raises DataError if none of them has that name."""
        if TEMPLATE in self._raw:
            return _text(self._raw[TEMPLATE], self._file.with_name(TEMPLATE))
        given = self._beside(CONFIG).get("chat_template")
        if given is None or isinstance(given, str):
            return given
        try:
            named = {t["name"]: t["template"] for t in given}
            return str(named["default"])
        except (TypeError, KeyError):
            raise DataError(
                f"{self._file.with_name(CONFIG)} has no chat template that can be used; chat_template must be a text, or a "
                'list of {"name": ..., "template": ...} of which one is named "default"'
            ) from None

    def files(self) -> dict[str, bytes]:
        """Return what a folder needs to hold this tokenizer by itself: file names with their bytes."""
        return dict(self._raw)

    def fingerprint(self) -> str:
        """Return a hash of the file and of the boundary."""
        return sha256(self._raw["tokenizer.json"] + b"\0" + self._boundary.encode()).hexdigest()[:16]

    @cached_property
    def _file(self) -> Path:
        if not self.path:
            raise ConfigError("the tokenizer `file` needs `path`: a tokenizer.json, or the folder that holds one")
        place = Path(os.path.expanduser(self.path))
        return place / "tokenizer.json" if place.is_dir() else place

    @cached_property
    def _raw(self) -> dict[str, bytes]:
        if not self._file.is_file():
            raise DataError(
                f"there is no tokenizer at {self._file}; give the path of a tokenizer.json or of a folder that holds one "
                "(a tokenizer of another format has to be saved as tokenizer.json first)"
            )
        beside = {name: self._file.with_name(name) for name in (CONFIG, TEMPLATE, MAP)}
        found = {"tokenizer.json": self._file, **{name: p for name, p in beside.items() if p.is_file()}}
        try:
            return {name: p.read_bytes().removeprefix(codecs.BOM_UTF8) for name, p in found.items()}
        except OSError as e:
            raise DataError(f"cannot read the tokenizer at {self._file}: {e}; give files that may be read") from None

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer, decoders

        text = _text(self._raw["tokenizer.json"], self._file)
        try:
            opened = Tokenizer.from_str(text)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # some broken files panic in Rust, which is no Exception
            raise DataError(
                f"{self._file} is not a tokenizer.json that `tokenizers` can read ({e}); give a whole file, as written by "
                "`seedbed tokenizer train` or by that library"
            ) from None
        largest = max(opened.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 <= largest < 2**31 - 1:
            raise DataError(
                f"{self._file} holds {'no piece at all' if largest < 0 else f'the id {largest}'}; a tokenizer needs pieces, "
                f"with ids of at most {2**31 - 2}, since ids are held in 32 bits: give another file"
            )
        opened.no_truncation()
        opened.no_padding()
        opened.encode_special_tokens = True  # the file cannot say this, so it is said on each opening
        if getattr(opened.model, "dropout", None):
            opened.model.dropout = None  # else the same text has other ids each time
        if isinstance(opened.decoder, decoders.WordPiece):
            opened.decoder.cleanup = False
        return opened

    @cached_property
    def _encode(self) -> Callable[[Sequence[str]], list[Int32[np.ndarray, "T"]]]:
        if falls_at_spaces(self._tokenizer):
            return Remembered(self._tokenizer).encode_batch

        def plain(texts: Sequence[str]) -> list[Int32[np.ndarray, "T"]]:
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(e.ids, dtype=np.int32) for e in found]

        return plain

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: id for id, token in added.items() if token.special}

    @cached_property
    def _boundary(self) -> str:
        there = self._special_ids
        if self.boundary is not None:
            if self.boundary not in there:
                raise ConfigError(
                    f"boundary {self.boundary!r} is not a special token of {self._file}; {nearest(self.boundary, there)}"
                )
            return self.boundary
        wanted = [self.special_tokens[role] for role in BOUNDARY_ROLES if role in self.special_tokens]
        for token in [*wanted, *BOUNDARY_NAMES]:
            if token in there:
                return token
        raise ConfigError(
            f"{self._file} does not say which special token stands in front of a document; name one of its special tokens "
            f"as `boundary` (--boundary of a command): {', '.join(sorted(there)) or 'it has none, so add one'}"
        )

    def _beside(self, name: str) -> dict[str, Any]:
        """The settings of a JSON file that lies beside the tokenizer; empty if there is none."""
        if name not in self._raw:
            return {}
        place = self._file.with_name(name)
        settings = parse_json(_text(self._raw[name], place), place, advice="mend it, or take it away")
        if not isinstance(settings, dict):
            raise DataError(f"{place} must hold a JSON object of settings; mend it, or take it away")
        return settings


def _text(raw: bytes, place: Path) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"{place} is not UTF-8 text ({e}); give a whole, unpacked file") from None
