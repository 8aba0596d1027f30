"""What a run folder carries so that its model can be read with nothing but that folder: tokenizer, sizes, licences.

Written when a run begins, to RUN/reader/: reader.json and the tokenizer's own files. The training text is not in it, and is not
needed to sample, evaluate or export.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed import tokenizers
from seedbed.core.durable import write_json, write_whole
from seedbed.core.errors import ConfigError, DataError
from seedbed.core.json_files import read_object
from seedbed.core.protocols import Tokenizer
from seedbed.experiments.plan.numbers import Part
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.streams import BuiltStream, build_stream

FOLDER = "reader"
_FACTS = "reader.json"
_ADVICE = "put the folder back, or start the run again"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How texts become a model's ids, how many ids it has and how long its rows were."""

    tokenizer: Tokenizer
    vocab_size: int
    seq_len: int
    licences: dict[str, str]  # source -> what was noted when it was prepared


def carry(folder: Path, plan: RunPlan, built: BuiltStream) -> None:
    """Write what the model of a run's last stage is read with; of one that was not trained on text, that."""
    facts: dict[str, Any] = {"vocab_size": built.stream.vocab_size, "seq_len": built.stream.seq_len, "tokenizer": None}
    if built.tokenizer is not None:
        part = built.tokenizer_part
        files = built.tokenizer.files()
        for name, raw in files.items():
            write_whole(folder / FOLDER / name, raw)
        facts["tokenizer"] = {**part, "path": "."} if files else part  # "." is the folder of reader.json
        facts["fingerprint"] = built.tokenizer.fingerprint()
    facts["licences"] = licences_of(built)
    write_json(folder / FOLDER / _FACTS, facts)


def reader_of(folder: Path, plan: RunPlan) -> Reader:
    """Return what a run's model is read with; runs from before it was carried are asked for their data.

    Raises ConfigError if the last stage was not trained on text, DataError if a file is missing or altered.
    """
    stage = plan.stages[-1]
    file = folder / FOLDER / _FACTS
    no_text = ConfigError(f"the last stage of {folder} was not trained on text, so it has no tokenizer to read with")
    if not file.is_file():
        built = build_stream(stage.stream, plan.streams[stage.stream])
        if built.tokenizer is None:
            raise no_text
        sizes = {"vocab_size": built.stream.vocab_size, "seq_len": built.stream.seq_len}
        return Reader(tokenizer=built.tokenizer, licences=licences_of(built), **sizes)
    facts = read_object(file, advice=_ADVICE)
    if facts["tokenizer"] is None:
        raise no_text
    part = dict(facts["tokenizer"])
    if "path" in part:
        part["path"] = str(file.parent)
    tokenizer: Tokenizer = tokenizers.parts.build(part, path="tokenizer")
    if tokenizer.fingerprint() != facts["fingerprint"]:
        raise DataError(f"the tokenizer in {file.parent} was altered since the run began; {_ADVICE}")
    return Reader(
        tokenizer=tokenizer, vocab_size=facts["vocab_size"], seq_len=facts["seq_len"], licences=dict(facts["licences"])
    )


def noted_licences(run: Path, parts: Mapping[str, Part]) -> dict[str, str]:
    """Return what is known of the licences of text sources by name: of those in the package, and as noted when prepared."""
    file = run / FOLDER / _FACTS
    noted: dict[str, str] = dict(read_object(file, advice=_ADVICE)["licences"]) if file.is_file() else {}
    for name, part in parts.items():
        if not isinstance(part, str) and str(part.get("path", "")).startswith("builtin:"):
            noted[name] = "MIT or public domain, see NOTICE"
    return {name: licence for name, licence in noted.items() if name in parts}


def licences_of(built: BuiltStream) -> dict[str, str]:
    """Return what prepared folders say of their licence, by source."""
    manifests = {name: corpus.noted() for name, corpus in built.corpora.items()}
    return {name: str(m["licence"]) for name, m in manifests.items() if m.get("licence")}
