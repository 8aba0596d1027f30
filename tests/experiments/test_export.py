import json
import shutil
import sys
from dataclasses import asdict
from hashlib import sha256

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seedbed.core.errors import ConfigError, DataError, RefusedError, RunFailedError
from seedbed.core.records import Batch
from seedbed.engine.checkpoints import latest
from seedbed.experiments import commands
from seedbed.experiments.export import export as module
from seedbed.experiments.export import tokenizer as exported_tokenizer
from seedbed.experiments.export.export import LIMIT, Exported, export, open_export
from seedbed.models.decoder import Decoder
from seedbed.models.hugging_face import folder_settings, folder_weights
from seedbed.scorers.own_run import ModelReader
from tests.conftest import write_recipe
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as kinds

transformers = pytest.importorskip("transformers")


def _run(recipe, out, **sets):
    sets = {"model.init_std": 0.3, **{k.replace("__", "."): v for k, v in sets.items()}}  # logits that say something
    return commands.run(recipe, out=out, arm="scratch", threads=1, say=lambda line: None, sets=sets).folder


@pytest.fixture(scope="module")
def plain(once):
    """One run on bytes, trained once for the tests that only read it, and its export."""

    def build(folder):
        corpus = folder / "corpus.txt"
        corpus.write_text("".join(f"The {n}th paragraph speaks of {n * 7 % 13} äpples.\n\n" for n in range(220)))
        exported = export(_run(write_recipe(folder, corpus), folder / "run"), folder / "out")
        (folder / "exported.json").write_text(json.dumps(asdict(exported), default=str))

    folder = once("exported", build)
    exported = json.loads((folder / "exported.json").read_text())
    return folder / "run", Exported(**{**exported, "folder": folder / "out", "notes": tuple(exported["notes"])})


def _logits(model, ids):
    with torch.no_grad():
        return model(Batch(tokens_BT=ids)).logits()


def _ids(vocab_size, length=80):
    return torch.randint(0, vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


def _opened(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def test_an_export_opens_without_arguments_with_the_run_s_logits_and_ids(plain):
    run, exported = plain
    trained = commands.open_run(run, device="cpu")
    model, tokenizer = _opened(exported.folder)
    ids = _ids(257)
    with torch.no_grad():
        theirs = model(ids).logits
    assert float(theirs.std()) > 0.5, "flat logits would show nothing"
    torch.testing.assert_close(theirs, _logits(trained.model, ids), atol=LIMIT, rtol=0)
    assert exported.tokens_equal and 0 < exported.largest_logit_difference < LIMIT
    for text in ("a", "", " Hello , world !\r\n\t é \u00a0🙂", "<|boundary|>", "\x00\ufeff"):
        read = tokenizer(text)["input_ids"]
        assert read == [256, *text.encode()]
        assert tokenizer.decode(read, skip_special_tokens=True) == text
    assert tokenizer("a", "b")["input_ids"] == [256, 97, 256, 98]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (256, 256, 32)
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (256, 256)
    assert model.config.max_position_embeddings == 32 and model.dtype == torch.float32


def test_an_export_comes_back_as_the_run_bit_for_bit(plain):
    run, exported = plain
    trained = commands.open_run(run, device="cpu")
    back = Decoder(**folder_settings(str(exported.folder))).build(vocab_size=1)
    weights = folder_weights(str(exported.folder))
    with torch.no_grad():
        for name, p in back.named_parameters():
            p.copy_(weights[back.roles[name]])
    assert torch.equal(_logits(back.eval(), _ids(257)), _logits(trained.model, _ids(257)))


def test_the_record_says_what_was_written(plain):
    run, exported = plain
    record = json.loads((exported.folder / "export.json").read_text())
    assert record["largest_logit_difference"] == exported.largest_logit_difference and record["positions_compared"] == 128
    final = json.loads((run / "final.json").read_text())
    assert (record["data"], record["ledger"]) == (final["data"], final["ledger"])
    assert record["evaluations"]["text"]["numbers"] == final["evaluations"]["text"]["numbers"]
    assert record["run"] == {k: final[k] for k in ("name", "arm", "seed", "plan", "commit")}
    assert record["parameters"] == final["parameters"] and record["run_step"] == 8 and record["ended"]
    for name, digest in record["sha256"].items():
        assert sha256((exported.folder / name).read_bytes()).hexdigest() == digest
    beside = {"README.md", "export.json"}
    wanted = {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(record["sha256"]) == {*wanted, "resolved.yaml"}
    assert {p.name for p in exported.folder.iterdir()} == beside | set(record["sha256"])
    assert (exported.folder / "resolved.yaml").read_bytes() == (run / "resolved.yaml").read_bytes()


def test_the_card_tells_costs_numbers_and_that_one_run_proves_nothing(plain):
    run, exported = plain
    card = (exported.folder / "README.md").read_text()
    final = json.loads((run / "final.json").read_text())
    assert card.startswith("---\nlibrary_name: transformers\n") and "license" not in card.split("---")[1]
    assert "# tiny, arm scratch, seed 0" in card and final["commit"] in card
    assert f"stage text: text (1,024 tokens); stream text, data {final['data']['text']}" in card
    train = final["ledger"]["text"]["train"]
    assert f"| text | train | 1,024 | {train['flops_run']:.3g} | {train['seconds']:,.1f} |" in card
    assert f"text: {final['evaluations']['text']['numbers']['bits_per_byte']:.4f} bits per byte" in card
    assert "A single run has no control" in card
    assert f"at most {exported.largest_logit_difference:.2g}, over 128 positions" in card
    assert "resolved.yaml names the data by the paths" in card and len(exported.notes) == 1


@pytest.mark.slow
def test_the_folder_works_in_lm_evaluation_harness(plain, tmp_path):
    """A task of one's own, offline: its log-likelihoods are those of our own scorer."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    run, exported = plain
    texts = ["The 3th paragraph", "x" * 32, "The 9th paragraph speaks of äpples, no less than twice, in 64 b."]
    assert [len(t.encode()) for t in texts] == [17, 32, 65]
    texts[2] = texts[2][:-1]  # two whole windows: a shorter last one is filled up from before there, and not here
    questions = [{"text": t, "q": "The 7th", "a": [" paragraph", " äpples", "?"], "gold": 0} for t in texts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    shared = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\ntest_split: test\n"
    (tmp_path / "rolling.yaml").write_text(
        f"task: rolling\n{shared}output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{{{text}}}}'\n"
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    (tmp_path / "choice.yaml").write_text(
        f"task: choice\n{shared}output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: gold\n"
        "doc_to_choice: a\ntarget_delimiter: ''\nmetric_list: [{metric: acc}]\n"
    )
    trained = commands.open_run(run, device="cpu")
    scorer = ModelReader(model=trained.model, tokenizer=trained.tokenizer, seq_len=trained.seq_len)
    card = (exported.folder / "README.md").read_text()

    def evaluated(task, settings):
        assert f"pretrained=FOLDER{settings}`" in card, "the card says how"
        found = lm_eval.simple_evaluate(
            model="hf",
            model_args=f"pretrained={exported.folder}{settings}",
            tasks=[task],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            device="cpu",
            batch_size=1,
            bootstrap_iters=0,
        )
        return found["results"][task], sorted(found["samples"][task], key=lambda x: x["doc_id"])

    numbers, samples = evaluated("rolling", ",add_bos_token=False")
    ours = [-float(x.sum()) for x in scorer.score(texts)]
    assert [x["filtered_resps"][0] for x in samples] == pytest.approx(ours, abs=1e-3)
    bits = -sum(ours) / np.log(2) / sum(len(t.encode()) for t in texts)
    assert numbers["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)

    _, samples = evaluated("choice", "")
    ours = [-float(scorer.score(["The 7th" + a])[0][7:].sum()) for a in questions[0]["a"]]
    assert [x[0] for x in samples[0]["filtered_resps"]] == pytest.approx(ours, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "model_type"),
    [
        ({"tied_embeddings": True, "num_kv_heads": 1, "vocab_size": 301}, "llama"),
        ({"window": 5}, "mistral"),
        ({"attention_bias": "qkv", "window": 9}, "qwen2"),
        ({"qk_norm": True, "head_dim": 10, "rope_base": 300.0}, "qwen3"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 16,
                }
            },
            "llama",
        ),
    ],
    ids=str,
)
def test_every_family_is_written_as_its_stock_class(settings, model_type, recipe, tmp_path):
    run = _run(recipe, tmp_path / "run", **{f"model.{k}": v for k, v in settings.items()})
    exported = export(run, tmp_path / "out")
    model, _ = _opened(exported.folder)
    assert model.config.model_type == model_type
    ids = _ids(257)
    with torch.no_grad():
        theirs = model(ids).logits
    torch.testing.assert_close(theirs, _logits(commands.open_run(run, device="cpu").model, ids), atol=LIMIT, rtol=0)
    assert model.config.vocab_size == settings.get("vocab_size", 257)


def _file_tokenizer(folder, kind):
    """Byte-level, WordPiece-like and SentencePiece-like tokenizers, each with what an export could get wrong."""
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "metaspace":
        pieces = [("<unk>", 0.0), *((chr(c), -2.0) for c in range(32, 127)), ("▁", -1.0), ("▁The", -0.5), ("\n", -2.0)]
        made = Tokenizer(kinds.Unigram([*pieces, *((f"<0x{b:02X}>", -9.0) for b in range(256))], unk_id=0, byte_fallback=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        specials, config = ["<unk>", "<s>", "</s>"], {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        vocab = {sign: i for i, sign in enumerate(alphabet)} | {"Th": 256, "The": 257}
        dropout = 0.9 if kind == "with dropout, cut and padded" else None
        made = Tokenizer(kinds.BPE(vocab=vocab, merges=[("T", "h"), ("Th", "e")], dropout=dropout))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "a space in front")
        made.decoder = decoders.ByteLevel()
        specials = ["<|end:of $A text|>", "<|pad|>"]
        config = {"eos_token": specials[0], "pad_token": {"content": "<|pad|>"}, "mask_token": "<|nowhere|>"}
        made.post_processor = processors.ByteLevel(trim_offsets=True)
    made.add_special_tokens(specials)
    if kind == "with dropout, cut and padded":
        made.enable_truncation(3)
        made.enable_padding(length=9)
    if kind == "for chats":
        config["chat_template"] = "{% for m in messages %}<|pad|>{{ m.content }}{% endfor %}"
    (folder / "tokenizer.json").write_text(made.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "clean_up_tokenization_spaces": True}))
    return {"kind": "file", "path": str(folder)}


@pytest.mark.parametrize("kind", ["byte level", "a space in front", "with dropout, cut and padded", "metaspace", "for chats"])
def test_a_tokenizer_file_keeps_its_ids_and_puts_the_boundary_in_front(kind, recipe, tmp_path):
    part = _file_tokenizer(tmp_path / "tokenizer", kind)
    run = _run(recipe, tmp_path / "run", streams__text__tokenizer=part)
    exported = export(run, tmp_path / "out")
    ours = commands.open_run(run, device="cpu").tokenizer
    _, theirs = _opened(exported.folder)
    assert exported.tokens_equal
    for text in ("The The 3th äpple ,\n  it 's", " The", "", "\ufeff🙂\x00", "Then\r\n\tthe"):
        read = theirs(text)["input_ids"]
        assert read == [ours.boundary_id, *ours.encode(text).tolist()]
        assert theirs.decode(read, skip_special_tokens=True) == ours.decode(ours.encode(text))
    boundary = theirs.convert_ids_to_tokens(ours.boundary_id)
    assert theirs.bos_token == theirs.eos_token == boundary == ("<s>" if kind == "metaspace" else "<|end:of $A text|>")
    assert len(theirs) <= ours.vocab_size, "no token was added"
    library = Tokenizer.from_file(str(exported.folder / "tokenizer.json"))
    assert (library.truncation, library.padding) == (None, None)
    spelled = f"a{boundary}b"
    if kind == "for chats":
        assert theirs.apply_chat_template([{"role": "user", "content": "a"}], tokenize=True, return_dict=False) == [
            theirs.convert_tokens_to_ids("<|pad|>"),
            ours.encode("a")[0],
        ]
        assert any("chat template" in note for note in exported.notes)
        assert ours.boundary_id in theirs(spelled)["input_ids"][1:], "as the note says"
    else:
        assert theirs(spelled)["input_ids"] == [ours.boundary_id, *ours.encode(spelled).tolist()], "special tokens are text"


def test_integers_are_words_of_the_exported_tokenizer(recipe, corpus, tmp_path):
    corpus.write_text("".join(f"{n % 110} {n * 7 % 110} 07 {n * 3 % 110}\n\n" for n in range(2000)))
    run = _run(recipe, tmp_path / "run", streams__text__tokenizer={"kind": "integers", "vocab": 110}, samples__prompts=["1"])
    exported = export(run, tmp_path / "out")
    _, theirs = _opened(exported.folder)
    assert exported.tokens_equal and json.loads((exported.folder / "export.json").read_text())["texts_compared"] > 5
    assert theirs(" 3\t17  007\n0 00 101 0100")["input_ids"] == [110, 3, 17, 7, 0, 0, 101, 100]
    assert theirs.decode([110, 3, 17, 7, 0, 0, 101], skip_special_tokens=True) == "3 17 7 0 0 101"
    with pytest.raises(Exception, match="WordLevel"):
        theirs("3 110")


def test_a_tokenizer_without_a_form_is_left_out_and_that_is_said(recipe, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(exported_tokenizer, "_MOST_NUMBERS", 49)
    corpus.write_text("".join(f"{n % 50} {n * 7 % 50}\n\n" for n in range(400)))
    run = _run(recipe, tmp_path / "run", streams__text__tokenizer={"kind": "integers", "vocab": 50}, samples__prompts=["1"])
    exported = export(run, tmp_path / "out")
    assert exported.tokens_equal is None and not (exported.folder / "tokenizer.json").exists()
    assert "No tokenizer was written: Integers" in exported.notes[0]
    assert "AutoTokenizer" not in (exported.folder / "README.md").read_text()
    transformers.AutoModelForCausalLM.from_pretrained(exported.folder)


def test_a_tokenizer_that_reads_otherwise_is_said_to(plain, tmp_path, monkeypatch):
    def without_boundary(token, id):
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

    monkeypatch.setattr(exported_tokenizer, "_boundary_in_front", without_boundary)
    exported = export(plain[0], tmp_path / "out")
    assert exported.tokens_equal is False
    assert "otherwise than seedbed does, such as ''" in exported.notes[-1]
    assert "NOT everywhere the same ids" in (exported.folder / "README.md").read_text()


@pytest.mark.parametrize("settings", [{"head_bias": True}], ids=str)
def test_what_no_stock_class_is_opens_with_one_line_of_our_own(settings, recipe, tmp_path):
    run = _run(recipe, tmp_path / "run", **{"samples": {}, **{f"model.{k}": v for k, v in settings.items()}})
    with pytest.raises(ConfigError, match="opens with seedbed only; write it with `--to safetensors`"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    exported = export(run, tmp_path / "out", to="safetensors")
    assert (exported.largest_logit_difference, exported.tokens_equal) == (None, None)
    trained = commands.open_run(run, device="cpu")
    shutil.rmtree(run)
    card = (exported.folder / "README.md").read_text()
    lines = [x.replace("FOLDER", str(exported.folder)) for x in card.splitlines() if "open_export" in x]
    found: dict = {}
    exec("\n".join(lines), found)
    assert torch.equal(_logits(found["model"], _ids(257)), _logits(trained.model, _ids(257)))
    assert "bit for bit" in card and "library_name: seedbed" in card and "nothing but seedbed opens it" in exported.notes[0]


def test_a_layer_of_one_s_own_is_written_with_its_buffers(recipe, tmp_path, monkeypatch):
    file = tmp_path / "counted.py"
    file.write_text(
        "import torch\nfrom dataclasses import dataclass\nfrom torch import nn\n\n"
        "class Counted(nn.Module):\n"
        "    def __init__(self, inner):\n        super().__init__()\n        self.inner = inner\n"
        "        self.register_buffer('calls', torch.zeros((), dtype=torch.int64))\n"
        "    def forward(self, x):\n        self.calls += self.training\n        return self.inner(x) * (1 + self.calls)\n\n"
        "@dataclass(frozen=True)\nclass Layer:\n    sites = ('mlp',)\n    layout_free = False\n"
        "    def build(self, site):\n        return Counted(site.default())\n"
    )
    monkeypatch.setenv("SEEDBED_ALLOW_LOCAL_CODE", "1")
    run = _run(recipe, tmp_path / "run", model__layers={"mlp": f"{file}:Layer"})
    with pytest.raises(ConfigError, match="a layer of one's own for mlp"):
        export(run, tmp_path / "out")
    export(run, tmp_path / "out", to="safetensors")
    trained, opened = commands.open_run(run, device="cpu").model, open_export(tmp_path / "out")
    assert int(opened.blocks[0].mlp.calls) == 8
    assert torch.equal(_logits(opened, _ids(257)), _logits(trained, _ids(257)))


def test_a_model_of_one_s_own_is_not_taken_for_a_stock_class(recipe, tmp_path, monkeypatch):
    """It has a decoder's settings and parameters, and adds something to the logits."""
    file = tmp_path / "louder.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom seedbed.models.decoder import Decoder\n"
        "from seedbed.models.transformer import Transformer\n\n"
        "class Loud(Transformer):\n"
        "    def embed(self, batch):\n        return 2 * super().embed(batch)\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Louder(Decoder):\n"
        "    def build(self, *, vocab_size):\n        return Loud(self.shape, vocab_size=vocab_size)\n"
    )
    monkeypatch.setenv("SEEDBED_ALLOW_LOCAL_CODE", "1")
    run = _run(recipe, tmp_path / "run", **{"model.kind": f"{file}:Louder"})
    with pytest.raises(ConfigError, match="no `decoder`.*--to safetensors"):
        export(run, tmp_path / "out")
    export(run, tmp_path / "out", to="safetensors")
    opened = open_export(tmp_path / "out")
    assert type(opened).__name__ == "Loud"
    assert torch.equal(_logits(opened, _ids(257)), _logits(commands.open_run(run, device="cpu").model, _ids(257)))


def test_our_own_loader_wants_whole_folders_of_its_own(plain, tmp_path):
    run, exported = plain
    with pytest.raises(DataError, match="exported to hf; open it with transformers"):
        open_export(exported.folder)
    with pytest.raises(DataError, match="no exported folder"):
        open_export(run)
    notes = export(run, tmp_path / "out", to="safetensors").notes
    assert not any("nothing but seedbed" in note for note in notes), "this one has a stock class"
    assert torch.equal(open_export(tmp_path / "out").head.weight, commands.open_run(run, device="cpu").model.head.weight)
    file = tmp_path / "out" / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(DataError, match="altered or cut"):
        open_export(tmp_path / "out")


def test_a_document_mask_is_exported_and_said(recipe, tmp_path):
    run = _run(recipe, tmp_path / "run", **{"model.document_mask": True})
    exported = export(run, tmp_path / "out")
    assert any("give it one document a row" in note for note in exported.notes)
    assert "one document a row" in (exported.folder / "README.md").read_text()


def test_a_model_begun_from_a_folder_needs_it_no_more(plain, recipe, tmp_path):
    folder = tmp_path / "giver"
    shutil.copytree(plain[1].folder, folder)
    run = _run(recipe, tmp_path / "run", model={"kind": "decoder", "size": f"hf:{folder}", "init_std": 0.3})
    exported = export(run, tmp_path / "out", to="safetensors")
    weight = commands.open_run(run, device="cpu").model.head.weight
    shutil.rmtree(folder)
    assert torch.equal(open_export(exported.folder).head.weight, weight)


def test_nothing_is_overwritten_and_a_failed_export_leaves_nothing(plain, tmp_path, monkeypatch):
    run, exported = plain
    before = sorted(p.name for p in exported.folder.iterdir())
    for taken in (exported.folder, run, run / "final.json"):
        with pytest.raises(RefusedError, match="nothing is overwritten"):
            export(run, taken)
    assert sorted(p.name for p in exported.folder.iterdir()) == before
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()

    real = module.llama_weights
    monkeypatch.setattr(
        module, "llama_weights", lambda model: {n: t + (n == "model.norm.weight") * 0.01 for n, t in real(model).items()}
    )
    with pytest.raises(RunFailedError, match="differ from the run's by up to"):
        export(run, tmp_path / "sub" / "out")
    monkeypatch.setattr(
        module, "llama_weights", lambda model: {n: t for n, t in real(model).items() if n != "model.norm.weight"}
    )
    with pytest.raises(RunFailedError, match="missing_keys.*model.norm.weight"):
        export(run, tmp_path / "sub" / "out")
    monkeypatch.setattr(module, "llama_weights", lambda model: {n: t * torch.nan for n, t in real(model).items()})
    with pytest.raises(RunFailedError, match="differ from the run's by up to inf"):
        export(run, tmp_path / "sub" / "out")
    assert list((tmp_path / "sub").iterdir()) == []


def test_a_folder_that_someone_filled_meanwhile_is_left_alone(plain, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real = module.card

    def slow(*args, **more):
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        return real(*args, **more)

    monkeypatch.setattr(module, "card", slow)
    with pytest.raises(RefusedError, match="nothing is overwritten"):
        export(plain[0], out)
    assert (out / "mine.txt").read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_exported_is_refused(plain, recipe, tmp_path, monkeypatch):
    run, _ = plain
    with pytest.raises(ConfigError, match="no format 'HF' to export to; known: hf, safetensors"):
        export(run, tmp_path / "out", to="HF")
    with pytest.raises(DataError, match="not a run folder"):
        export(tmp_path, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(DataError, match=r"pip install 'seedbed\[hf\]'"):
            export(run, tmp_path / "out")
        export(run, tmp_path / "own", to="safetensors")
    assert not (tmp_path / "out").exists()


def test_a_run_that_has_not_ended_says_so(plain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(plain[0], run)
    (run / "final.json").unlink()
    exported = export(run, tmp_path / "out")
    card = (exported.folder / "README.md").read_text()
    assert "The run had not ended" in card and "Nothing was read at its end" in card
    record = json.loads((exported.folder / "export.json").read_text())
    assert (
        not record["ended"] and record["run"]["commit"] != "unknown" and record["ledger"]["text"]["train"]["positions"] == 1024
    )
    (run / "final.json").write_text(json.dumps({"status": "failed", "error": "the loss is nan"}))
    assert "The run failed" in export(run, tmp_path / "failed").notes[0]


def test_the_card_of_a_study_s_run_carries_what_the_study_says_of_its_arm(plain, tmp_path):
    """A study by hand: of its two contrasts the run's arm is in one."""
    run = tmp_path / "study" / "scratch" / "seed-0"
    shutil.copytree(plain[0], run)
    (tmp_path / "study" / "study.json").write_text("{}")

    def card(name):
        return (export(run, tmp_path / name).folder / "README.md").read_text()

    assert "has not ended: nothing is decided" in card("pending")
    numbers = {"interval_equivalence": [0.1, 0.3], "p": 0.01, "minimum_detectable": 0.1, "mean_nats": 1.0}
    both = [
        {"arm": "nca", "reference": "scratch", "mean": 0.2, "interval": [0.1, 0.3], "p_holm": 0.02, "verdict": "worse"},
        {"arm": "nca", "reference": "dyck", "mean": -0.4, "interval": [-0.5, -0.3], "p_holm": 0.03, "verdict": "better"},
    ]
    data = {
        "name": "by hand",
        "control": "scratch",
        "metric": "text.bits_per_byte",
        "unit": "bits per byte",
        "better": "less",
        "margin": 0.01,
        "bars": {"rules": {"nca": {"0": {"met": False}}}},
        "contrasts": [{**c, **numbers, "per_seed": {"0": 0.2, "1": 0.2}} for c in both],
    }
    (tmp_path / "study" / "comparison.json").write_text(json.dumps(data))
    decided = card("decided")
    verdict = "nca is worse than scratch: +0.2000 bits per byte (interval +0.1000 to +0.3000, 2 paired seeds, Holm p 0.020)."
    assert f"## Verdict\n\n{verdict}\n\nFrom the study by hand (control: scratch, metric: text.bits_per_byte)" in decided
    (tmp_path / "study" / "comparison.json").write_text("{}")
    with pytest.raises(DataError, match="comparison.json is broken"):
        card("broken")
    assert not list(tmp_path.glob("*broken*"))


@pytest.mark.slow
def test_a_real_study_s_verdict_is_read_as_it_was_written(a_study, tmp_path):
    verdict = json.loads((a_study / "out/comparison.json").read_text())["verdict"]
    card = (export(a_study / "out/nca/seed-1", tmp_path / "nca").folder / "README.md").read_text()
    assert f"{verdict}." in card, "one arm and its control: all that the study says"
    assert "weights from soil" in card and "## Verdict\n\nstage soil did not learn" in card


def test_the_exported_weights_are_those_of_the_checkpoint(plain):
    run, exported = plain
    ours = load_file(latest(run / "checkpoints") / "model.safetensors")
    theirs = load_file(exported.folder / "model.safetensors")
    assert torch.equal(ours["blocks.1.mlp.up.weight"], theirs["model.layers.1.mlp.up_proj.weight"])
    assert len(ours) == len(theirs)
