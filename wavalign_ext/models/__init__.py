"""Models of our own: Qwen2 that hears through an encoder outside of it, for transformers and for vLLM.

:func:`register` makes them known; our plugin does so in every process of verl and vLLM. A script of yours that loads a
converted or exported model calls it first.
"""

from wavalign_ext.models.names import ARCHITECTURE, MODEL_TYPE

__all__ = ["ARCHITECTURE", "MODEL_TYPE", "register", "register_with_vllm"]


def register() -> None:
    """``AutoConfig`` and ``AutoModelForCausalLM`` of transformers learn ``hearing_qwen2``; again is no error."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from wavalign_ext.models.hearing_qwen2 import HearingQwen2Config, HearingQwen2ForCausalLM

    AutoConfig.register(MODEL_TYPE, HearingQwen2Config, exist_ok=True)
    AutoModelForCausalLM.register(HearingQwen2Config, HearingQwen2ForCausalLM, exist_ok=True)


def register_with_vllm() -> None:
    """vLLM learns the class by name: it looks at model classes in a process of its own before it runs one."""
    from vllm import ModelRegistry

    register()
    ModelRegistry.register_model(ARCHITECTURE, f"wavalign_ext.models.hearing_vllm:{ARCHITECTURE}")
