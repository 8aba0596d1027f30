"""How fast files become shards: ours against `datasets.map` with packing and against datatrove's tokenizer pipeline.

    python benchmarks/prepare.py [--megabytes 60] [--workers 2] [--repeats 3]

All read the same .jsonl files with the same byte-level BPE and as many processes, in turn, each in a fresh folder; the median
of the repeats counts. Ours writes hashes, document records and a manifest beside the ids; datasets packs rows of 1,024;
datatrove writes its .ds files (no shuffling, no merging). Duplicates are kept, so that all tokenize the same text. The last
line is JSON.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import chain
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
SEQ_LEN = 1024


def write_corpus(folder: Path, *, megabytes: float, files: int) -> int:
    """Write the built-in corpora as .jsonl, again and again until there is enough; return the bytes of text."""
    from seedbed.sources.text import Text

    documents = [d.text for name in ("prose", "code", "math") for d in Text(path=f"builtin:{name}").all_documents()]
    written, n = 0, 0
    opened = [(folder / f"part-{i:02d}.jsonl").open("w") for i in range(files)]
    while written < megabytes * 1e6:
        text = documents[(n * 7919) % len(documents)]
        opened[n % files].write(json.dumps({"text": text, "id": str(n)}) + "\n")
        written += len(text.encode())
        n += 1
    for file in opened:
        file.close()
    return written


def ours(corpus: Path, tokenizer: Path, out: Path, *, workers: int) -> int:
    from seedbed.experiments.prepare.prepare import prepare

    found = prepare(
        [corpus], out / "shards", workers=workers, tokenizer=str(tokenizer), duplicates="keep", say=lambda line: None
    )
    return int(found.manifest["tokens"])


def with_datasets(corpus: Path, tokenizer: Path, out: Path, *, workers: int) -> int:
    import datasets

    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    fast = Tokenizer.from_file(str(tokenizer))
    boundary = fast.token_to_id("<|endoftext|>")

    def tokenize(batch):
        return {"ids": [[boundary, *e.ids] for e in fast.encode_batch_fast(batch["text"], add_special_tokens=False)]}

    def pack(batch):
        joined = list(chain.from_iterable(batch["ids"]))
        whole = len(joined) // SEQ_LEN * SEQ_LEN
        return {"ids": [joined[i : i + SEQ_LEN] for i in range(0, whole, SEQ_LEN)]}

    files = sorted(map(str, corpus.glob("*.jsonl")))
    loaded = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(out / "cache"), num_proc=workers)
    ids = loaded.map(tokenize, batched=True, num_proc=workers, remove_columns=loaded.column_names)
    rows = ids.map(pack, batched=True, num_proc=workers)
    return len(rows) * SEQ_LEN


def with_datatrove(corpus: Path, tokenizer: Path, out: Path, *, workers: int) -> int:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from loguru import logger

    logger.remove()
    steps = [
        JsonlReader(str(corpus)),
        DocumentTokenizer(
            str(out / "tokens"), tokenizer_name_or_path=str(tokenizer), eos_token="<|endoftext|>", shuffle_documents=False
        ),
    ]
    LocalPipelineExecutor(pipeline=steps, tasks=workers, workers=workers, logging_dir=str(out / "logs")).run()
    return sum(f.stat().st_size for f in (out / "tokens").glob("*.ds")) // 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=16_384)
    asked = parser.parse_args()
    peers = {"seedbed": ours, "datasets": with_datasets, "datatrove": with_datatrove}
    with tempfile.TemporaryDirectory() as place:
        corpus, tokenizer = Path(place) / "corpus", Path(place) / "tokenizer.json"
        corpus.mkdir()
        size = write_corpus(corpus, megabytes=asked.megabytes, files=8)
        from seedbed.experiments.prepare.tokenizing import train

        train(
            ["builtin:prose", "builtin:code"],
            tokenizer,
            kind="bpe",
            vocab_size=asked.vocab_size,
            special_tokens=["<|endoftext|>"],
        )
        seconds: dict[str, list[float]] = {name: [] for name in peers}
        tokens = {}
        for repeat in range(asked.repeats):
            for name, prepare in list(peers.items())[:: 1 if repeat % 2 == 0 else -1]:
                with tempfile.TemporaryDirectory(dir=place) as out:
                    started = time.perf_counter()
                    tokens[name] = prepare(corpus, tokenizer, Path(out), workers=asked.workers)
                    seconds[name].append(time.perf_counter() - started)
                print(f"{name}: {size / 1e6 / seconds[name][-1]:.2f} MB/s, {tokens[name]:,} tokens", flush=True)
    speed = {name: size / 1e6 / statistics.median(found) for name, found in seconds.items()}
    best = max(v for k, v in speed.items() if k != "seedbed")
    print(
        json.dumps(
            {
                "megabytes": size / 1e6,
                "workers": asked.workers,
                "mb_per_s": speed,
                "tokens": tokens,
                "ratio_to_best_peer": speed["seedbed"] / best,
            }
        )
    )


if __name__ == "__main__":
    main()
