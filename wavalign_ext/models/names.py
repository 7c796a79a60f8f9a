"""What the model that hears is called: in ``config.json``, and in the registries of transformers and vLLM."""

MODEL_TYPE = "hearing_qwen2"
ARCHITECTURE = "HearingQwen2ForCausalLM"
PROJECTION = "audio_projection"  # the projector's weights begin with it
