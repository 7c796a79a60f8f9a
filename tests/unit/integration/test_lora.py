"""What LoRA may not be configured as; what it does is in tests/plugin/test_adapters.py."""

import pytest
from omegaconf import OmegaConf

from wavalign_ext.config import ConfigError
from wavalign_ext.integration.lora import check_head, check_storage


def config(strategy: str, dtype: str | None, rank: int = 8):
    model = {"lora_rank": rank, "use_fused_kernels": False}
    actor = {"strategy": strategy, "fsdp_config": {"model_dtype": dtype}}
    return OmegaConf.create({"actor_rollout_ref": {"model": model, "actor": actor}})


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "bfloat16"])
def test_adapters_in_half_precision_are_refused(dtype: str) -> None:
    with pytest.raises(ConfigError, match=f"model_dtype='{dtype}' with LoRA.*use strategy=fsdp2"):
        check_head(config("fsdp", dtype), None)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "bfloat16"])
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_full_weights_in_half_precision_are_refused(strategy: str, dtype: str) -> None:
    given = config(strategy, dtype, rank=0)
    with pytest.raises(ConfigError, match=f"model_dtype='{dtype}' is not allowed.*rounds.*set it to fp32"):
        check_storage(given)
    given.actor_rollout_ref.actor.optim = {"override_optimizer_config": {"bf16_stochastic_round": True}}
    check_storage(given)


@pytest.mark.parametrize("given", [("fsdp2", "bf16"), ("fsdp", "fp32"), ("fsdp", None), ("fsdp2", "fp32", 0)], ids=str)
def test_what_is_trained_in_fp32_passes(given: tuple) -> None:
    check_storage(config(*given))
