import copy
import json
import pickle

import numpy as np
import pytest

from seedbed.core import protocols
from seedbed.core.errors import ConfigError, DataError
from seedbed.tokenizers import parts
from seedbed.tokenizers.file import TokenizerFile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors


def _library(*specials, model=None):
    """Bytes and the piece "ab": small enough to count by hand."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(model or models.BPE(vocab=alphabet | {"ab": 256}, merges=[("a", "b")], dropout=0.5))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(specials))
    return made


def _write(folder, made, **beside):
    (folder / "tokenizer.json").write_text(made if isinstance(made, str) else made.to_str())
    for name, content in beside.items():
        file = folder / {"config": "tokenizer_config.json", "map": "special_tokens_map.json"}.get(name, "chat_template.jinja")
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return TokenizerFile(path=str(folder))


def test_a_file_gives_ids_text_and_pieces(tmp_path):
    part = _write(tmp_path, _library("<s>", "</s>"))
    assert isinstance(part, protocols.Tokenizer)
    assert (part.vocab_size, part.boundary_id) == (259, 257)
    ids = part.encode("abab a")
    assert ids.dtype == np.int32 and ids[:2].tolist() == [256, 256] and len(ids) == 4
    assert part.decode(np.array([257, 256, 257, 256, 258])) == "abab</s>", "the boundary is left out, the rest is shown"
    assert (part.piece(256), part.piece(257), part.piece(10**6)) == ("ab", None, None)
    assert [i.tolist() for i in part.encode_batch(["ab", ""])] == [[256], []] and part.encode_batch([]) == []
    assert part == TokenizerFile(path=str(tmp_path)) != TokenizerFile(path=str(tmp_path / "tokenizer.json"))
    assert pickle.loads(pickle.dumps(part)).encode("ab").tolist() == [256]


def test_the_same_text_has_the_same_ids_though_the_file_asks_for_dropout(tmp_path):
    part = _write(tmp_path, _library("<s>"))
    assert {tuple(part.encode("ababab")) for _ in range(30)} == {(256, 256, 256)}


def test_special_tokens_in_a_text_are_text(tmp_path):
    part = _write(tmp_path, _library("<s>", "</s>"))
    assert part.encode("<s>").tolist() == [part.encode(c)[0] for c in "<s>"]
    assert part.decode(part.encode("a</s><s>")) == "a</s><s>"


def test_a_file_s_cutting_padding_and_template_are_switched_off(tmp_path):
    made = _library("<s>")
    made.enable_truncation(1)
    made.enable_padding(length=9)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    assert _write(tmp_path, made).encode("abab").tolist() == [256, 256]


def test_decoding_leaves_spaces_as_they_are(tmp_path):
    made = Tokenizer(models.WordPiece({"[CLS]": 0, "a": 1, ".": 2}, unk_token="[CLS]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece(cleanup=True)
    made.add_special_tokens(["[CLS]"])
    assert _write(tmp_path, made).decode(np.array([0, 1, 2])) == "a ."


@pytest.mark.parametrize(
    ("specials", "beside", "chosen"),
    [
        (["</s>", "<s>"], {}, "<s>"),
        (["[SEP]", "[CLS]"], {}, "[CLS]"),
        (["<s>", "<x>", "<y>"], {"config": {"bos_token": "<x>", "eos_token": "<y>"}}, "<x>"),
        (["<s>", "<x>"], {"config": {"bos_token": None, "eos_token": {"content": "<x>"}}}, "<x>"),
        (["<s>", "<x>"], {"config": {"cls_token": "<x>"}}, "<x>"),
        (["<s>", "<x>"], {"config": {"bos_token": "<not there>"}}, "<s>"),
        (["<s>", "<x>", "<y>"], {"map": {"bos_token": "<y>"}, "config": {"bos_token": "<x>"}}, "<x>"),
        (["<s>", "<y>"], {"map": {"bos_token": "<y>"}, "config": {}}, "<y>"),
    ],
)
def test_the_boundary_is_what_the_files_say_and_else_a_usual_name(specials, beside, chosen, tmp_path):
    part = _write(tmp_path, _library(*specials), **beside)
    assert part.boundary_id == 257 + specials.index(chosen)


def test_a_boundary_that_is_given_wins_and_must_be_a_special_token(tmp_path):
    _write(tmp_path, _library("<s>", "<x>"), config={"bos_token": "<s>"})
    part = TokenizerFile(path=str(tmp_path), boundary="<x>")
    assert part.boundary_id == 258
    assert part.fingerprint() != TokenizerFile(path=str(tmp_path)).fingerprint()
    made = _library("<s>")
    made.add_tokens(["<ordinary>"])
    _write(tmp_path, made)
    for wrong in ("<xx>", "ab", "<ordinary>"):
        with pytest.raises(ConfigError, match="is not a special token"):
            _ = TokenizerFile(path=str(tmp_path), boundary=wrong).boundary_id


def test_without_a_boundary_the_special_tokens_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"name one of its special tokens as `boundary` .*: <x>, <y>"):
        _ = _write(tmp_path, _library("<y>", "<x>")).boundary_id
    with pytest.raises(ConfigError, match="it has none, so add one"):
        _ = _write(tmp_path, _library()).boundary_id


def test_a_model_that_makes_a_boundary_of_text_is_found_out(tmp_path):
    pieces = [("<s>", 0.0), ("a", -1.0), ("<", -2.0), ("s", -2.0), (">", -2.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=1))
    made.add_special_tokens(["<s>"])
    part = _write(tmp_path, made)
    assert part.encode("as").tolist() == [1, 3]
    with pytest.raises(DataError, match=r"piece of the text 'a<s>' into its boundary '<s>'"):
        part.encode("a<s>")


def test_the_chat_template_is_kept(tmp_path):
    assert _write(tmp_path, _library("<s>")).chat_template is None
    part = _write(
        tmp_path, _library("<s>"), config={"chat_template": "one", "eos_token": {"content": "<s>"}, "pad_token": None}
    )
    assert part.chat_template == "one" and part.special_tokens == {"eos_token": "<s>"}
    named = [{"name": "tools", "template": "two"}, {"name": "default", "template": "three"}]
    assert _write(tmp_path, _library("<s>"), config={"chat_template": named}).chat_template == "three"
    for wrong in (named[:1], 5, ["x"]):
        with pytest.raises(DataError, match='one is named "default"'):
            _ = _write(tmp_path, _library("<s>"), config={"chat_template": wrong}).chat_template
    assert _write(tmp_path, _library("<s>"), template="{{ é }}").chat_template == "{{ é }}", "the file of its own wins"


def test_its_files_make_a_folder_that_is_the_same_tokenizer(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    _write(tmp_path / "one", _library("<s>", "<x>"), config={"bos_token": "<x>"}, map={}, template="t")
    (tmp_path / "one/tokenizer.json").rename(tmp_path / "one/mine.json")
    part = TokenizerFile(path=str(tmp_path / "one/mine.json"))
    files = part.files()
    assert sorted(files) == ["chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    for name, content in files.items():
        (tmp_path / "two" / name).write_bytes(content)
    copied = TokenizerFile(path=str(tmp_path / "two"))
    assert copied.fingerprint() == part.fingerprint() and len(part.fingerprint()) == 16
    assert (copied.boundary_id, copied.chat_template) == (258, "t")


def test_ids_may_have_gaps(tmp_path):
    spec = json.loads(_library("<s>").to_str())
    spec["model"]["vocab"]["ab"] = 900
    part = _write(tmp_path, json.dumps(spec))
    assert part.vocab_size == 901 and part.piece(500) is None and part.encode("ab").tolist() == [900]


def test_no_path_is_allowed_until_it_is_used():
    part = parts.build("file")
    with pytest.raises(ConfigError, match="needs `path`"):
        part.encode("a")


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(DataError, match="there is no tokenizer at"):
            TokenizerFile(path=str(path)).fingerprint()


def _changed(**changes):
    spec = copy.deepcopy(json.loads(_library("<s>").to_str()))
    for name, value in changes.items():
        spec[name] = {**spec[name], **value} if isinstance(value, dict) and isinstance(spec[name], dict) else value
    return json.dumps(spec)


BROKEN = {
    "empty": "",
    "cut": _changed()[:2000],
    "a list": "[]",
    "deep": "[" * 100_000,
    "no model": _changed(model=None),
    "unknown merge": _changed(model={"merges": [["q", "zz"]]}),
    "negative id": _changed(model={"vocab": {"a": -1}}),
    "id of 32 bits": _changed(model={"vocab": {"a": 2**32 - 1, "b": 1}, "merges": []}),
    "no piece": _changed(model={"vocab": {}, "merges": []}, added_tokens=[]),
    "bad pattern": _changed(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
    ),
    "a panic in Rust": _changed(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_one_paragraph(what, tmp_path):
    part = _write(tmp_path, BROKEN[what])
    with pytest.raises(DataError, match=r"tokenizer\.json (is not|holds) .*; .*give") as caught:
        part.encode("a")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_data_errors(tmp_path):
    part = _write(tmp_path, "")
    (tmp_path / "tokenizer.json").write_bytes(b"\x1f\x8b\x08\xff")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        part.encode("a")


@pytest.mark.parametrize("config", ["{", "[1]", "[" * 100_000])
def test_a_broken_file_beside_it_is_named(config, tmp_path):
    with pytest.raises(DataError, match=r"tokenizer_config\.json .*mend it"):
        _ = _write(tmp_path, _library("<s>"), config=config).boundary_id


def test_half_a_character_and_unknown_text_are_data_errors(tmp_path):
    part = _write(tmp_path, _library("<s>"))
    with pytest.raises(DataError, match="no half surrogates"):
        part.encode("a\ud800")
    part = _write(tmp_path, _library("<s>", model=models.WordLevel({"a": 0}, unk_token="[UNK]")))
    with pytest.raises(DataError, match="tokenizer that knows every byte"):
        part.encode("b")
