"""The card (README.md) of an exported model: how to open it, what it cost, what was measured, what a study decided of it."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from seedbed.core.errors import DataError
from seedbed.core.run_record import COMPARISON, read_comparison
from seedbed.experiments.plan.run_plan import RunPlan, read_plan
from seedbed.experiments.study.comparison import sentence
from seedbed.experiments.study.statistics import Contrast


def card(run: Path, record: Mapping[str, Any], *, licences: Mapping[str, str]) -> str:
    """README.md: how to open it, what it is, what it cost, what is known of it and how exact it is."""
    plan, stock = read_plan(run), record["format"] == "hf"
    title = f"{plan.name}, arm {plan.arm}, seed {plan.seed}"
    header = [f"library_name: {'transformers' if stock else 'seedbed'}", "pipeline_tag: text-generation", "tags: [seedbed]"]
    about = " ".join(filter(None, (plan.title, plan.paper and f"Paper: {plan.paper}")))
    sections = {
        "Open it": _opening(record, stock=stock),
        "Trained on": _data_lines(plan, record, licences),
        "Spent": _ledger_lines(record["ledger"]),
        "Measured": _test_lines(record),
        "Verdict": _verdict(run, plan.arm),
        "How exact this folder is": _exactness(record),
    }
    if record["notes"]:
        sections["Notes"] = "\n".join(f"- {note}" for note in record["notes"])
    first = (
        f"{about}\n\n{record['parameters']:,} parameters, rows of {record['seq_len']} tokens, {record['run_step']} steps. "
        f"Plan {record['run']['plan']} (resolved.yaml), commit {record['run']['commit']}."
    ).strip()
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return "---\n" + "\n".join(header) + f"\n---\n\n# {title}\n\n{first}\n\n{body}\n"


def _opening(record: Mapping[str, Any], *, stock: bool) -> str:
    boundary = "Every document of the training began with the boundary token"
    if not stock:
        return (
            "The weights stand under seedbed's own names, and seedbed's own loader opens them:\n\n```python\n"
            'from seedbed import open_export\n\nmodel = open_export("FOLDER")\n```\n\n'
            f"Where the run itself is, `seedbed sample RUN` writes with it. {boundary}."
        )
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
    ]
    if record["tokens_equal"] is None:
        return f"```python\n{lines[0].removesuffix(', AutoTokenizer')}\n{lines[1]}\n```\n\n{boundary}."
    lines.append('tokenizer = AutoTokenizer.from_pretrained("FOLDER")')
    return (
        "```python\n" + "\n".join(lines) + f"\n```\n\n{boundary}; the tokenizer puts it in front. In lm-evaluation-harness: "
        "`lm_eval --model hf --model_args pretrained=FOLDER`; where the harness itself puts a boundary in front, in tasks "
        "of the kind loglikelihood_rolling, `pretrained=FOLDER,add_bos_token=False`."
    )


def _data_lines(plan: RunPlan, record: Mapping[str, Any], licences: Mapping[str, str]) -> str:
    lines = []
    for stage in plan.stages:
        spec, shown = plan.streams[stage.stream], record["ledger"].get(stage.name, {}).get("tokens", {})
        what = ", ".join(f"{name} ({shown.get(name, 0):,} tokens)" for name in spec.named_sources)
        taken = f"; weights from {stage.weights.from_}" if stage.weights else ""
        print_ = record["data"].get(stage.stream, "unknown")
        lines.append(f"- stage {stage.name}: {what}; stream {stage.stream}, data {print_}{taken}")
        noted = [name for name in spec.named_sources if name in licences]
        lines += [f"  - licence of {name}, as noted when it was prepared: {licences[name]}" for name in noted]
    return "\n".join(lines)


def _ledger_lines(ledger: Mapping[str, Any]) -> str:
    rows = ["| stage | what | positions | FLOPs | seconds |", "|---|---|---|---|---|"]
    for stage, lines in ledger.items():
        for what, cost in lines.items():
            if what != "tokens":
                numbers = f"{cost['positions']:,} | {cost['flops_run']:.3g} | {cost['seconds']:,.1f}"
                rows.append(f"| {stage} | {what} | {numbers} |")
    return "\n".join(rows)


def _test_lines(record: Mapping[str, Any]) -> str:
    lines = []
    for name, found in record["evaluations"].items():
        numbers = ", ".join(
            f"{found['numbers'][n]:.4f} {m['unit']}" for n, m in found["measures"].items() if n in found["numbers"]
        )
        size = f", over {found['numbers']['bytes']:,} bytes" if "bytes" in found["numbers"] else ""
        notes = "".join(f"; {note}" for note in found.get("notes", ()))
        lines.append(f"- {name}: {numbers}{size}{notes}")
    return "\n".join(lines) or "Nothing was read at its end."


def _verdict(run: Path, arm: str) -> str:
    """What the study that this run belongs to says about its arm; a single run has no control."""
    study = run.resolve().parent.parent
    if run.resolve().parent.name != arm or not (study / "study.json").is_file():
        return "A single run has no control: its numbers show that it works, and are no evidence that anything in it helps."
    file = study / COMPARISON
    if not file.is_file():
        return "The study that this run belongs to has not ended: nothing is decided."
    data = read_comparison(study)
    try:
        names = {f.name for f in fields(Contrast)}
        all_ = [Contrast(**{k: v for k, v in c.items() if k in names}) for c in data["contrasts"]]
        mine = [c for c in all_ if arm in (c.arm, c.reference)]
        bars = {name: {a: seeds for a, seeds in arms.items() if a == arm} for name, arms in data["bars"].items()}
        said = sentence({**data, "bars": bars}, mine)
        return (
            f"{said}.\n\nFrom the study {data['name']} (control: {data['control']}, metric: {data['metric']}); "
            f"{data['better']} is better."
        )
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{file} is broken ({e}); write it again with `seedbed resume {study}`") from None


def _exactness(record: Mapping[str, Any]) -> str:
    if record["format"] != "hf":
        return "The weights are those of the run's checkpoint, bit for bit."
    logits = (
        f"Opened with transformers {record['versions']['transformers']} in fp32, its logits differ from the run's by at most "
        f"{record['largest_logit_difference']:.2g}, over {record['positions_compared']} positions of held-out text and random "
        "ids."
    )
    if record["tokens_equal"] is None:
        return logits
    same = "the same ids as" if record["tokens_equal"] else "NOT everywhere the same ids as"
    return f"{logits} Its tokenizer gives {same} the run's, and the same way back, on {record['texts_compared']} texts."
