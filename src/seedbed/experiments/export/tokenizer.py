"""A run's tokenizer as a tokenizer.json that puts the boundary in front of a text, as every document of the training had it."""

import json
from typing import Any

from seedbed.core.protocols import Tokenizer
from seedbed.tokenizers.bytes import Bytes
from seedbed.tokenizers.file import CONFIG, TEMPLATE, TokenizerFile
from seedbed.tokenizers.integers import Integers

BOUNDARY = "<|boundary|>"  # the boundary of tokenizers that have no name for it
_MOST_NUMBERS = 2**20  # of an `integers` tokenizer that is written out word by word


def tokenizer_files(tokenizer: Tokenizer, *, seq_len: int) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of a tokenizer, and notes for its reader; no file if it has no form as tokenizer.json."""
    boundary, roles, template = BOUNDARY, dict[str, str](), None
    if isinstance(tokenizer, TokenizerFile):
        spec = json.loads(tokenizer.files()["tokenizer.json"])
        special = {t["id"]: t["content"] for t in spec["added_tokens"] if t["special"]}
        boundary, template = special[tokenizer.boundary_id], tokenizer.chat_template
        roles = {role: token for role, token in tokenizer.special_tokens.items() if token in special.values()}
        if "dropout" in spec["model"]:
            spec["model"]["dropout"] = None
        if spec["decoder"] and "cleanup" in spec["decoder"]:
            spec["decoder"]["cleanup"] = False
    elif isinstance(tokenizer, Bytes):
        spec = _bytes_spec()
    elif isinstance(tokenizer, Integers) and tokenizer.vocab <= _MOST_NUMBERS:
        spec = _integers_spec(tokenizer)
    else:
        return {}, [f"No tokenizer was written: {type(tokenizer).__name__} has no form as tokenizer.json. Give the model ids."]
    spec |= {"truncation": None, "padding": None, "post_processor": _boundary_in_front(boundary, tokenizer.boundary_id)}
    settings = {
        **roles,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": boundary,
        "eos_token": boundary,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": template is None,  # special tokens in a text are text
        "model_max_length": seq_len,
    }
    if "add_prefix_space" in (spec["pre_tokenizer"] or {}):
        settings["add_prefix_space"] = spec["pre_tokenizer"]["add_prefix_space"]  # transformers 4 would set its own
    files = {
        "tokenizer.json": json.dumps(spec, ensure_ascii=False).encode(),
        CONFIG: (json.dumps(settings, ensure_ascii=False, indent=2) + "\n").encode(),
    }
    if template is None:
        return files, []
    note = "A text that spells a special token is read as that token, as the chat template needs it; in training it was text."
    return {**files, TEMPLATE: template.encode()}, [note]


def _bytes_spec() -> dict[str, Any]:
    """A byte-level BPE without merges: byte b has the id b."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, pre_tokenizers
    from tokenizers import models as kinds

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {ord(sign): sign for sign in signs if ord(sign) < 256}  # these bytes are shown as themselves, the others in order
    others = zip((b for b in range(256) if b not in own), (sign for sign in signs if ord(sign) >= 256), strict=True)
    shown = own | dict(others)
    made = Library(kinds.BPE(vocab={shown[b]: b for b in range(256)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([BOUNDARY])
    return json.loads(made.to_str())


def _integers_spec(tokenizer: Integers) -> dict[str, Any]:
    """A word a number. Leading zeros are dropped as by ours; what is no number of the vocabulary is an error there too."""
    from tokenizers import Regex, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Library
    from tokenizers import models as kinds

    made = Library(kinds.WordLevel({str(n): n for n in range(tokenizer.vocab)}, unk_token="not a number of this vocabulary"))
    made.normalizer = normalizers.Replace(Regex(r"(?<!\S)0+(?=\d)"), "")
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([BOUNDARY])
    return json.loads(made.to_str())


def _boundary_in_front(token: str, id: int) -> dict[str, Any]:
    """What the library calls TemplateProcessing, as it writes it: the boundary, then the text; for two texts twice."""

    def one(text: str) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": text, "type_id": 0}}]

    ids = {token: {"id": token, "ids": [id], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": one("A"), "pair": [*one("A"), *one("B")], "special_tokens": ids}
