"""How fast texts are sampled: ours against transformers.generate with the same weights, in its fastest setting.

    python benchmarks/sample.py [--samples 64] [--prompts 16] [--new-tokens 200] [--threads 2] [--repeats 3] [--dtype float32]
        [--peers dynamic-sdpa-1,static-eager-4] [--compile]

Both write `samples` texts of `new-tokens` tokens for each prompt (20 to 60 ids, all different) from a decoder of 6 layers and
width 256 with 257 ids, at temperature 0.8 without top-k or top-p; the boundary never ends a text. A setting of the peer is
cache-attention-prompts: the cache and attention it is given, and how many prompts (left-padded, with all their samples) go
through one call. First every setting is tried once, on as few calls as make two prompts; then the fastest and ours run in turn,
whole, `repeats` times, and the medians count. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
SEQ_LEN, TEMPERATURE = 512, 0.8
PEERS = [f"{cache}-{attention}-{n}" for cache in ("dynamic", "static") for attention in ("sdpa", "eager") for n in (1, 4, 16)]


def prompts_of(count: int) -> list[str]:
    """Return texts of 19 to 59 letters: with the boundary 20 to 60 ids."""
    import numpy as np

    draws = np.random.default_rng(0)
    lengths = [19 + round(40 * n / max(1, count - 1)) for n in range(count)]
    return ["".join(map(chr, draws.integers(ord("a"), ord("z") + 1, length))) for length in lengths]


class Ours:
    def __init__(self, model, *, batch_size: int) -> None:
        from seedbed.models.cache import stepper
        from seedbed.tokenizers.bytes import Bytes
        from seedbed.writers.sample import Sampler

        self.writer = Sampler(
            model=model,
            stepper=stepper,
            tokenizer=Bytes(),
            seq_len=SEQ_LEN,
            temperature=TEMPERATURE,
            end_at_boundary=False,
            batch_size=batch_size,
        )

    def write(self, prompts: Sequence[str], *, samples: int, new_tokens: int, seed: int) -> int:
        texts = self.writer.write(prompts, new_tokens=new_tokens, seed=seed, samples=samples)
        assert len(texts) == len(prompts) * samples
        return len(texts) * new_tokens


class Peer:
    def __init__(self, model, setting: str, *, compiled: bool) -> None:
        import torch
        from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

        from seedbed.models.hugging_face import llama_config, llama_weights

        cache, attention, at_once = setting.split("-")
        self.at_once = int(at_once)
        settings = llama_config(model.config, vocab_size=model.vocab_size) | {"max_position_embeddings": SEQ_LEN}
        config = LlamaConfig(**settings, bos_token_id=256, eos_token_id=None, pad_token_id=256, attn_implementation=attention)
        self.model = LlamaForCausalLM(config)
        self.model.load_state_dict(dict(llama_weights(model)))
        self.model.to(next(model.parameters()).dtype).eval()
        self.settings = {"cache_implementation": "static"} if cache == "static" else {}
        if compiled:
            self.settings["compile_config"] = CompileConfig(dynamic=False, mode="default")
            self.settings["compile_config"]._compile_all_devices = True
        self.seed = torch.manual_seed

    def write(self, prompts: Sequence[str], *, samples: int, new_tokens: int, seed: int) -> int:
        import torch

        self.seed(seed)
        written = 0
        for start in range(0, len(prompts), self.at_once):
            ids = [[256, *text.encode()] for text in prompts[start : start + self.at_once]]
            longest = max(map(len, ids))
            padded = torch.tensor([[256] * (longest - len(row)) + row for row in ids])
            shown = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
            with torch.inference_mode():
                found = self.model.generate(
                    input_ids=padded,
                    attention_mask=shown,
                    do_sample=True,
                    temperature=TEMPERATURE,
                    top_k=0,
                    top_p=1.0,
                    num_return_sequences=samples,
                    max_new_tokens=new_tokens,
                    **self.settings,
                )
            assert found.shape == (len(ids) * samples, longest + new_tokens)
            written += len(found) * new_tokens
        return written


def speed(write: Callable[..., int], prompts: Sequence[str], **asked: int) -> float:
    started = time.perf_counter()
    return write(prompts, **asked) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--compile", action="store_true", help="let transformers compile its steps (static caches)")
    asked = parser.parse_args()

    import torch

    from seedbed.models.decoder import Decoder

    torch.set_num_threads(asked.threads)
    model = Decoder(size="5M").build(vocab_size=257)
    model.initialize(seed=0)
    model.to(getattr(torch, asked.dtype))
    prompts = prompts_of(asked.prompts)
    work = {"samples": asked.samples, "new_tokens": asked.new_tokens}
    tried = {}
    for setting in asked.peers.split(","):
        peer = Peer(model, setting, compiled=asked.compile)
        peer.write(prompts[: peer.at_once], samples=2, new_tokens=4, seed=0)
        tried[setting] = speed(peer.write, prompts[: max(2, peer.at_once)], **work, seed=0)
        print(f"transformers {setting}: {tried[setting]:,.0f} tokens/s on {max(2, peer.at_once)} prompts", flush=True)
    best = max(tried, key=lambda setting: tried[setting])
    writers = {"seedbed": Ours(model, batch_size=asked.batch_size), "transformers": Peer(model, best, compiled=asked.compile)}
    found: dict[str, list[float]] = {name: [] for name in writers}
    for repeat in range(asked.repeats):
        for name, writer in list(writers.items())[:: 1 if repeat % 2 == 0 else -1]:
            found[name].append(speed(writer.write, prompts, **work, seed=repeat))
            print(f"{name}: {found[name][-1]:,.0f} tokens/s", flush=True)
    medians = {name: statistics.median(speeds) for name, speeds in found.items()}
    print(
        json.dumps(
            {
                **vars(asked),
                "tokens": asked.prompts * asked.samples * asked.new_tokens,
                "peer_setting": best,
                "peers_tokens_per_s": tried,
                "tokens_per_s": found,
                "median_tokens_per_s": medians,
                "ratio_to_best_peer": medians["seedbed"] / medians["transformers"],
            }
        )
    )


if __name__ == "__main__":
    main()
