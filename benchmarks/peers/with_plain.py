"""A contender of benchmarks/train.py: a Llama-like model and a loop in plain torch, about as long as nanoGPT's.

Letters: B rows, T positions, D width, H heads, K head width, V vocabulary.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import Turns, read_job, read_rows


class Block(nn.Module):
    def __init__(self, job: SimpleNamespace) -> None:
        super().__init__()
        d, self.heads = job.d_model, job.num_heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(d, eps=job.norm_eps), nn.RMSNorm(d, eps=job.norm_eps)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.gate, self.up = nn.Linear(d, job.d_ff, bias=False), nn.Linear(d, job.d_ff, bias=False)
        self.down = nn.Linear(job.d_ff, d, bias=False)

    def forward(self, hidden_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        rows, length, width = hidden_BTD.shape
        qkv = self.qkv(self.attention_norm(hidden_BTD)).split(width, dim=2)
        q, k, v = (x.view(rows, length, self.heads, -1).transpose(1, 2) for x in qkv)
        q, k = rotate(q, cos_TK, sin_TK), rotate(k, cos_TK, sin_TK)
        mixed_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden_BTD = hidden_BTD + self.out(mixed_BHTK.transpose(1, 2).reshape(rows, length, width))
        states_BTD = self.mlp_norm(hidden_BTD)
        return hidden_BTD + self.down(F.silu(self.gate(states_BTD)) * self.up(states_BTD))


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    first, second = x_BHTK.chunk(2, dim=-1)
    return (x_BHTK * cos_TK + torch.cat([-second, first], dim=-1) * sin_TK).to(x_BHTK.dtype)


class Model(nn.Module):
    def __init__(self, job: SimpleNamespace) -> None:
        super().__init__()
        self.embedding = nn.Embedding(job.vocab_size, job.d_model)
        self.blocks = nn.ModuleList(Block(job) for _ in range(job.num_layers))
        self.norm = nn.RMSNorm(job.d_model, eps=job.norm_eps)
        self.head = nn.Linear(job.d_model, job.vocab_size, bias=False)
        width = job.d_model // job.num_heads
        frequencies = job.rope_base ** (-torch.arange(0, width, 2).float() / width)
        angles_TK = torch.outer(torch.arange(job.seq_len).float(), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles_TK.cos(), persistent=False)
        self.register_buffer("sin", angles_TK.sin(), persistent=False)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        hidden_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD, self.cos, self.sin)
        logits_BTV = self.head(self.norm(hidden_BTD))
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def from_llama(weights: dict[str, Tensor], *, num_layers: int) -> dict[str, Tensor]:
    """Return weights under this file's names; queries, keys and values become one matrix."""
    found = {
        "embedding.weight": weights["model.embed_tokens.weight"],
        "norm.weight": weights["model.norm.weight"],
        "head.weight": weights["lm_head.weight"],
    }
    for i in range(num_layers):
        old, new = f"model.layers.{i}.", f"blocks.{i}."
        found[new + "qkv.weight"] = torch.cat([weights[f"{old}self_attn.{x}_proj.weight"] for x in "qkv"])
        found[new + "out.weight"] = weights[old + "self_attn.o_proj.weight"]
        found |= {f"{new}{x}.weight": weights[f"{old}mlp.{x}_proj.weight"] for x in ("gate", "up", "down")}
        found[new + "attention_norm.weight"] = weights[old + "input_layernorm.weight"]
        found[new + "mlp_norm.weight"] = weights[old + "post_attention_layernorm.weight"]
    return found


def main() -> None:
    job = read_job()
    turns = Turns(job)
    from safetensors.torch import load_file

    rows = read_rows(job)
    model = Model(job)
    model.load_state_dict(from_llama(load_file(job.weights), num_layers=job.num_layers))
    model.to(job.device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=job.learning_rate, betas=tuple(job.betas), eps=job.eps, weight_decay=0.0, fused=True
    )
    parameters = list(model.parameters())
    run = torch.compile(model) if job.compiled else model
    turns.ready(parameters=sum(math.prod(p.shape) for p in parameters))
    for step in range(job.steps):
        taken = torch.from_numpy(rows[step * job.batch_size : (step + 1) * job.batch_size].astype("int64")).to(job.device)
        with torch.autocast(job.device, dtype=torch.bfloat16, enabled=job.bfloat16):
            loss = run(taken[:, :-1].contiguous(), taken[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, job.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.step_done(loss.detach())


if __name__ == "__main__":
    main()
