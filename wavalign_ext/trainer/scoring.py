"""Log-probs of rows that nobody sampled, by verl's actor: held-out targets, answers of pairs."""

# TransferQueue and tensordict annotate more narrowly than they behave.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder
from verl.workers.utils.padding import response_from_nested

from wavalign_ext.method.anchor import padding_row, rows_to_tensordict, supervised_row
from wavalign_ext.speech.heard import HEARD_FEATURES, load_features, multi_modal_inputs

PARTITION = "wavalign_scored"
FIELDS = ["prompts", "responses", "input_ids", "position_ids", "response_mask", "loss_mask", "multi_modal_inputs"]


def prompt_builder(trainer: Any) -> Any:
    """The agent loop's own rendering of a chat into ids."""
    return create_continuous_token_builder(
        trainer.tokenizer,
        hf_model_type=trainer.model_type,
        chat_template_kwargs=trainer.config.data.get("apply_chat_template_kwargs", {}),
        processor=trainer.processor,
    )


def answer_row(trainer: Any, builder: Any, data: Mapping[str, Any], answer: Any, kind: int) -> dict[str, Any]:
    """An answer (text and codes) to the prompt of a row of the data, as a row of verl's queue.

    ``builder`` is :func:`prompt_builder`'s; ``kind`` as :mod:`wavalign_ext.method.token_weights` has them.
    """
    layout = trainer.layout
    prompt = layout.prompt(builder.build_initial_tokens(list(data["raw_prompt"])))
    ids = trainer.target(answer)
    row = supervised_row(prompt, ids, kind, layout.modality(ids), layout.drawn(ids))
    heard = load_features(data.get(HEARD_FEATURES), trainer.wav.audio_root)
    return row | {"multi_modal_inputs": multi_modal_inputs(heard)}


def score_rows(trainer: Any, rows: Sequence[dict[str, Any]], without_adapter: bool = False) -> list[torch.Tensor]:
    """log p of each response token at temperature 1, (T,) per row of :func:`wavalign_ext.method.anchor.supervised_row`.

    ``without_adapter``: by the model below a LoRA adapter.
    """
    rollout = trainer.config.actor_rollout_ref.rollout
    ranks = trainer.actor_rollout_wg.world_size
    multiple = ranks * (1 if rollout.log_prob_use_dynamic_bsz else rollout.log_prob_micro_batch_size_per_gpu)
    padded = [*rows, *(padding_row(*trainer.layout.padding) for _ in range(-len(rows) % multiple))]
    keys = [f"scored{number}_0_0" for number in range(len(padded))]
    tags: list[dict[str, Any]] = [{"status": "success", "seq_len": len(row["input_ids"])} for row in padded]
    fields = rows_to_tensordict([{name: row[name] for name in FIELDS} for row in padded])
    tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=fields, tags=tags)
    try:
        meta = KVBatchMeta(keys=keys, tags=tags, partition_id=PARTITION, fields=FIELDS)
        meta.extra_info = {"calculate_entropy": False, "compute_loss": False, "temperature": 1.0}
        if without_adapter:
            meta.extra_info["no_lora_adapter"] = True
        trainer.actor_rollout_wg.compute_log_prob(meta)
        data = tq.kv_batch_get(keys[: len(rows)], PARTITION, select_fields=["log_probs", "response_mask"])
    finally:
        tq.kv_clear(keys=keys, partition_id=PARTITION)
    return list(response_from_nested(data["log_probs"], data["response_mask"]).unbind())
