"""How likely the policy finds the targets of the validation set: what the anchor is there to keep."""

# TransferQueue and tensordict annotate more narrowly than they behave.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder
from verl.workers.utils.padding import response_from_nested

from wavalign_ext.method.anchor import padding_row, rows_to_tensordict, supervised_row
from wavalign_ext.method.token_weights import ANCHOR, modality_masks
from wavalign_ext.speech.heard import HEARD_FEATURES, load_features, multi_modal_inputs

PARTITION = "wavalign_held_out"
FIELDS = ["prompts", "responses", "input_ids", "position_ids", "response_mask", "loss_mask", "multi_modal_inputs"]


def held_out_nll(trainer: Any) -> dict[str, float]:
    """``val-anchor/nll_text`` and ``nll_speech``: mean −log p per target token, teacher-forced, temperature 1."""
    rows = _target_rows(trainer)
    real = len(rows)
    rollout = trainer.config.actor_rollout_ref.rollout
    ranks = trainer.actor_rollout_wg.world_size
    multiple = ranks * (1 if rollout.log_prob_use_dynamic_bsz else rollout.log_prob_micro_batch_size_per_gpu)
    rows += [padding_row(*trainer.layout.padding) for _ in range(-len(rows) % multiple)]
    keys = [f"heldout{number}_0_0" for number in range(len(rows))]
    tags: list[dict[str, Any]] = [{"status": "success", "seq_len": len(row["input_ids"])} for row in rows]
    tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=rows_to_tensordict(rows), tags=tags)
    try:
        meta = KVBatchMeta(keys=keys, tags=tags, partition_id=PARTITION, fields=FIELDS)
        meta.extra_info = {"calculate_entropy": False, "compute_loss": False, "temperature": 1.0}
        trainer.actor_rollout_wg.compute_log_prob(meta)
        data = tq.kv_batch_get(keys[:real], PARTITION, select_fields=["log_probs", "response_mask"])
    finally:
        tq.kv_clear(keys=keys, partition_id=PARTITION)
    logp = torch.cat(list(response_from_nested(data["log_probs"], data["response_mask"]).unbind()))
    modality = torch.cat([row["modality"] for row in rows[:real]])
    drawn = torch.cat([row["response_mask"] for row in rows[:real]])
    masks = modality_masks(modality, drawn, trainer.wav.boundary_modality)
    return {
        f"val-anchor/nll_{name}": -logp[mask].mean().item()
        for name, mask in zip(("text", "speech"), masks, strict=True)
        if mask.any()
    }


def _target_rows(trainer: Any) -> list[dict[str, Any]]:
    # The agent loop's own rendering: held-out prompts are those of the validation answers.
    builder = create_continuous_token_builder(
        trainer.tokenizer,
        hf_model_type=trainer.model_type,
        chat_template_kwargs=trainer.config.data.get("apply_chat_template_kwargs", {}),
        processor=trainer.processor,
    )
    rows = []
    for number, target in enumerate(trainer.val_targets):
        held_out = trainer.val_dataset[number]
        prompt = builder.build_initial_tokens(list(held_out["raw_prompt"]))
        ids, layout = trainer.target(target), trainer.layout
        row = supervised_row(layout.prompt(prompt), ids, ANCHOR, layout.modality(ids), layout.drawn(ids))
        heard = load_features(held_out.get(HEARD_FEATURES), trainer.wav.audio_root)
        rows.append(row | {"multi_modal_inputs": multi_modal_inputs(heard)})
    return rows
