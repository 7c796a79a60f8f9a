"""Models that write text and speech on two streams, side by side, through stock vLLM and verl; see docs/parallel.md.

Importing this package is cheap; :func:`register` lets transformers load its models.
"""


def register() -> None:
    """Let ``AutoConfig`` and ``AutoModelForCausalLM`` know the model type ``wavalign_two_streams``."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from wavalign_ext.parallel.config import TwoStreamConfig
    from wavalign_ext.parallel.model import TwoStreamForCausalLM

    AutoConfig.register(TwoStreamConfig.model_type, TwoStreamConfig, exist_ok=True)
    AutoModelForCausalLM.register(TwoStreamConfig, TwoStreamForCausalLM, exist_ok=True)
