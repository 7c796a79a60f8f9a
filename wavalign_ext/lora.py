"""Whether a model's head can be trained as the recipe says: asked before Ray starts, of a model without weights."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from wavalign_ext.config import ConfigError

KEY = "actor_rollout_ref.model"


def check_head(config: DictConfig, hf_config: Any) -> None:
    """Refuse what the workers could only refuse once they run.

    Raises:
        ConfigError: LoRA adapters on the head, with the fused head or with tied embeddings.
        UnsupportedHead: a head that the fused head cannot replace; also a ValueError.
    """
    from wavalign_ext import fused_head

    model = config.actor_rollout_ref.model
    backend = OmegaConf.select(model, "fused_kernel_options.impl_backend")
    fused = bool(model.use_fused_kernels) and backend == fused_head.BACKEND
    if fused:
        fused_head.check_config(hf_config)
    if not fused and not adapters(model):
        return
    name, head = _head(hf_config, model.trust_remote_code)
    if adapters(model) and _targets(model, name):
        where = f"{KEY}.target_modules={model.target_modules} puts an adapter on the head {name!r}"
        if fused:
            raise ConfigError(
                f"{where}, which the fused head cannot have: leave it out (all-linear does), or set {KEY}."
                "use_fused_kernels=false"
            )
        if getattr(hf_config, "tie_word_embeddings", False):
            raise ConfigError(f"{where}, which shares its weight with the embedding: leave it out (all-linear does)")
    if fused:
        fused_head.FusedHead.install(head, hf_config)


def adapters(model: DictConfig) -> bool:
    """Whether the actor trains LoRA adapters; verl has two keys for the rank."""
    return (OmegaConf.select(model, "lora.rank") or 0) > 0 or (model.lora_rank or 0) > 0


def _head(hf_config: Any, trust_remote_code: bool) -> tuple[str, Any]:
    """Name of the output head, and the model around it; no memory is used."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), ""), model


def _targets(model: DictConfig, name: str) -> bool:
    """Whether PEFT would put an adapter on the module ``name``."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    given: Any = OmegaConf.to_container(model, resolve=True)
    if given["target_modules"] == "all-linear":  # PEFT leaves the head out
        return False
    settings = LoraConfig(target_modules=given["target_modules"], exclude_modules=given.get("exclude_modules"))
    return bool(check_target_module_exists(settings, name))
