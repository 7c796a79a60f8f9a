"""The first step of TRL's DPOTrainer on a CPU:  python trl_dpo.py MODEL REFERENCE CASE OUT

CASE as replay_dpo.py takes it. Its ids go through TRL as words of a tokenizer, so that TRL's own preparation of a data
set takes part. Writes {"loss", "grads"}, of the step's start. TRL is on the path of this process alone: verl imports it
where it is installed, and fails with a TRL of these days.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer


class KeepGradients(TrainerCallback):
    """The gradients as they are when the optimiser is about to step."""

    grads: dict[str, torch.Tensor]

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def words(ids: list[int]) -> str:
    return " ".join(f"w{number}" for number in ids)


def main() -> None:
    model, reference, given, out = sys.argv[1:]
    torch.set_num_threads(1)
    case = json.loads(Path(given).read_text())
    policy, fixed = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (model, reference))
    made = Tokenizer(models.WordLevel({f"w{n}": n for n in range(policy.config.vocab_size)}))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="w0", pad_token="w0")
    pairs = [case["pairs"][number] for number in case["order"]]
    rows = [
        {"prompt": words(pair["prompt"]) + " ", "chosen": words(pair["chosen"]), "rejected": words(pair["rejected"])}
        for pair in pairs
    ]
    arguments = DPOConfig(
        output_dir=str(Path(out).parent / "trl"),
        beta=case["beta"],
        max_steps=1,
        per_device_train_batch_size=len(rows),
        max_grad_norm=0.0,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    kept = KeepGradients()
    trainer = DPOTrainer(
        model=policy,
        ref_model=fixed,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[kept],
    )
    prepared: Any = trainer.train_dataset
    assert sorted(prepared["chosen_ids"]) == sorted(pair["chosen"] for pair in pairs)
    trainer.train()
    torch.save({"loss": trainer.state.log_history[0]["loss"], "grads": kept.grads}, out)


if __name__ == "__main__":
    main()
