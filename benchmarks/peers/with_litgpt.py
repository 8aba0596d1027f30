"""A contender of benchmarks/train.py: litgpt's GPT under Fabric, step by step what litgpt/pretrain.py does; logging left out.

AdamW is fused here on every device; litgpt itself asks for that on CUDA only.
"""

import torch
from turns import Turns, read_job, read_rows


def main() -> None:
    job = read_job()
    turns = Turns(job)
    import lightning
    from litgpt.model import GPT, Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import CycleIterator, chunked_cross_entropy, instantiate_torch_optimizer
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader, Dataset
    from torchmetrics.aggregation import RunningMean

    rows = read_rows(job)

    class Rows(Dataset):
        def __len__(self) -> int:
            return job.steps * job.batch_size

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.from_numpy(rows[index].astype("int64"))

    config = Config(
        block_size=job.seq_len,
        n_layer=job.num_layers,
        n_embd=job.d_model,
        n_head=job.num_heads,
        vocab_size=job.vocab_size,
        padded_vocab_size=job.vocab_size,
        intermediate_size=job.d_ff,
        rotary_percentage=1.0,
        rope_base=int(job.rope_base),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=job.norm_eps,
        mlp_class_name="LLaMAMLP",
    )
    fabric = lightning.Fabric(
        accelerator=job.device, devices=1, strategy="auto", precision="bf16-mixed" if job.bfloat16 else "32-true"
    )
    fabric.launch()
    model = GPT(config)
    weights: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, weights, load_file(job.weights))
    model.load_state_dict(weights)
    model.max_seq_length = job.seq_len
    if job.compiled:
        model = torch.compile(model)
    model = fabric.setup(model)
    adamw = {"lr": job.learning_rate, "betas": tuple(job.betas), "eps": job.eps, "weight_decay": 0.0}
    optimizer = instantiate_torch_optimizer(
        {"class_path": "torch.optim.AdamW", "init_args": adamw}, model.parameters(), fused=True
    )
    optimizer = fabric.setup_optimizers(optimizer)
    loader = fabric.setup_dataloaders(DataLoader(Rows(), batch_size=job.batch_size, shuffle=False))
    running_loss = RunningMean(window=1, sync_on_compute=False).to(fabric.device)
    turns.ready(parameters=sum(p.numel() for p in model.parameters()))
    for step, taken in enumerate(CycleIterator(loader)):
        if step >= job.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = job.learning_rate
        input_ids = taken[:, 0 : model.max_seq_length].contiguous().long()
        targets = taken[:, 1 : (model.max_seq_length + 1)].contiguous().long()
        logits = model(input_ids)
        loss = chunked_cross_entropy(logits, targets)
        fabric.backward(loss)
        running_loss.update(loss.detach())
        fabric.clip_gradients(model, optimizer, max_norm=job.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        turns.step_done(loss.detach())


if __name__ == "__main__":
    main()
