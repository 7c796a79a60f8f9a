"""Step-Audio 2 mini as a Qwen2 that hears.

The published class ``step_audio_2`` has Qwen2 (``model``, ``lm_head``, configured by ``text_config``), a Whisper-like
encoder (``encoder``) and an adapter whose convolution belongs to the frozen encoder here, and whose two linears around
a ReLU are the projector. Source: modeling_step_audio_2.py and configuration_step_audio_2.py of the checkpoint.
"""

from pathlib import Path
from typing import Any

from wavalign_ext.checkpoints.ears import STEP, make_plan
from wavalign_ext.checkpoints.plan import ConvertError, Plan, require_type
from wavalign_ext.speech.layout import load_layout


def plan(source: Path, config: dict[str, Any]) -> Plan:
    """How a Step-Audio 2 mini folder becomes a HearingQwen2ForCausalLM.

    Raises:
        ConvertError: another model, or one whose encoder has another size than mini's.
    """
    require_type(config, STEP.model_type, source)
    facts = load_layout(STEP.layout).encoder
    assert facts is not None
    if (size := config["audio_encoder_config"]["n_audio_state"]) != facts.size:
        raise ConvertError(f"{str(source)!r}: n_audio_state={size}, not {facts.size}: give Step-Audio 2 mini")
    # The head is a layer of its own; only the outer configuration says in what the weights are stored.
    text = {"torch_dtype": config.get("torch_dtype"), **config["text_config"], "tie_word_embeddings": False}
    return make_plan(STEP, source, text)
