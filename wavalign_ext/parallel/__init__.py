"""Models that write text and speech on two streams, side by side, through stock vLLM and verl; see docs/parallel.md.

Importing this package is cheap; :func:`register` lets transformers load its models.
"""


def register() -> None:
    """Let ``AutoConfig`` and ``AutoModelForCausalLM`` know the two-stream model types."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from wavalign_ext.parallel.config import HearingTwoStreamConfig, TwoStreamConfig
    from wavalign_ext.parallel.model import HearingTwoStreamForCausalLM, TwoStreamForCausalLM

    pairs = ((TwoStreamConfig, TwoStreamForCausalLM), (HearingTwoStreamConfig, HearingTwoStreamForCausalLM))
    for config, model in pairs:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
