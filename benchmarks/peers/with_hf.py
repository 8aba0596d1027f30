"""A contender of benchmarks/train.py: LlamaForCausalLM under transformers.Trainer, logging and saving turned off."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import tempfile

import torch
from turns import Turns, read_job, read_rows


def main() -> None:
    job = read_job()
    turns = Turns(job)
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    rows = read_rows(job)

    class Rows(torch.utils.data.Dataset):
        """A row's tokens with the tokens that follow them; shift_labels spares the model from shifting by itself."""

        def __len__(self) -> int:
            return job.steps * job.batch_size

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            row = torch.from_numpy(rows[index].astype("int64"))
            return {"input_ids": row[:-1], "labels": row[1:], "shift_labels": row[1:]}

    config = LlamaConfig(
        **job.llama_config,
        max_position_embeddings=job.seq_len,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).float()
    model.load_state_dict(load_file(job.weights))

    class Keeping(Trainer):
        """Keeps each step's loss, on the device."""

        def training_step(self, *given, **named):
            self.loss = super().training_step(*given, **named).detach()
            return self.loss

    class Waiting(TrainerCallback):
        def on_train_begin(self, args, state, control, **named) -> None:
            turns.ready(parameters=sum(p.numel() for p in model.parameters()))

        def on_step_end(self, args, state, control, **named) -> None:
            turns.step_done(trainer.loss)

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=job.steps,
            per_device_train_batch_size=job.batch_size,
            train_sampling_strategy="sequential",
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            adam_beta1=job.betas[0],
            adam_beta2=job.betas[1],
            adam_epsilon=job.eps,
            weight_decay=0.0,
            max_grad_norm=job.clip_norm,
            optim="adamw_torch_fused",
            use_cpu=job.device == "cpu",
            bf16=job.bfloat16,
            torch_compile=job.compiled,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=job.device == "cuda",
        )
        trainer = Keeping(model=model, args=settings, train_dataset=Rows(), callbacks=[Waiting()])
        trainer.train()


if __name__ == "__main__":
    main()
