"""Qwen2-Audio as a Qwen2 that hears; it answers in text alone.

The published class ``qwen2_audio`` has a Qwen2 (``language_model.``, configured by ``text_config``), a Whisper-like
encoder (``audio_tower.``), frozen here, and one linear layer (``multi_modal_projector.``), which is the projector.
Source: transformers' Qwen2AudioForConditionalGeneration and Qwen2AudioConfig.
"""

from pathlib import Path
from typing import Any

from wavalign_ext.checkpoints.ears import QWEN, make_plan
from wavalign_ext.checkpoints.plan import ConvertError, Plan, require_type
from wavalign_ext.speech.layout import load_layout


def plan(source: Path, config: dict[str, Any]) -> Plan:
    """How a Qwen2-Audio folder becomes a HearingQwen2ForCausalLM.

    Raises:
        ConvertError: another model, or one whose encoder has another size.
    """
    from transformers import Qwen2Config

    require_type(config, QWEN.model_type, source)
    facts = load_layout(QWEN.layout).encoder
    assert facts is not None
    if (size := config["audio_config"].get("d_model", facts.size)) != facts.size:
        raise ConvertError(f"{str(source)!r}: audio_config.d_model={size}, not {facts.size}: give Qwen2-Audio 7B")
    # What the published text_config leaves out is what transformers' class has.
    text = Qwen2Config(**config["text_config"]).to_dict()
    stored = config.get("dtype") or config.get("torch_dtype")
    text |= {"rope_theta": text["rope_parameters"]["rope_theta"], "torch_dtype": stored}
    return make_plan(QWEN, source, text)
