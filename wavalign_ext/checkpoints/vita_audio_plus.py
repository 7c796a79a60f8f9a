"""VITA-Audio Plus-Vanilla as a Qwen2 that hears.

The published class ``qwen2_mtp_sensevoice`` is Qwen2 with SenseVoiceSmall (``model.audio_model``) and a projector
(``model.audio_projection``) inside. Source: vita_audio/models/qwen2_mtp_sensevoice_v4_48_3 of VITA-MLLM/VITA-Audio.
"""

from pathlib import Path
from typing import Any

from wavalign_ext.checkpoints.ears import PLUS, make_plan
from wavalign_ext.checkpoints.plan import ConvertError, Plan, require_type


def plan(source: Path, config: dict[str, Any]) -> Plan:
    """How a VITA-Audio Plus-Vanilla folder becomes a HearingQwen2ForCausalLM.

    Raises:
        ConvertError: another model, or one with layers for multi-token prediction (Plus-Boost), which are not known.
    """
    require_type(config, PLUS.model_type, source)
    if config.get("num_nextn_predict_layers", 0):
        raise ConvertError(f"{str(source)!r} has layers for multi-token prediction: give VITA-Audio-Plus-Vanilla")
    return make_plan(PLUS, source, config)
