"""LoRA: adapters that learn on a frozen base of lower precision, and whether a head may have one.

The checks are asked before Ray starts, of a model without weights.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from wavalign_ext.config import ConfigError
from wavalign_ext.models.names import PROJECTION

KEY = "actor_rollout_ref.model"
FP32 = ("fp32", "float32")


class Fp32Adapters:
    """For verl's FSDP engines: adapters are stored in fp32, whatever the base is stored in.

    verl stores them as the base is. In bf16 a step of 2e-5 rounds away wherever the weight is larger than about 0.01:
    most of A would never move. FSDP1 needs one dtype in a flat group; FSDP2 needs it of the trained parameters only,
    and computes with both in ``mixed_precision.param_dtype``.
    """

    def _build_lora_module(self: Any, module: Any) -> Any:
        module = super()._build_lora_module(module)  # type: ignore[misc]
        for name, parameter in module.named_parameters():
            if PROJECTION in name:  # between an encoder and the model: it learns as it is
                parameter.requires_grad_(True)
        if self.engine_config.strategy == "fsdp2":
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        return module


def check_storage(config: DictConfig) -> None:
    """Raises :class:`ConfigError`: what is trained would be stored in half precision, where small steps round away."""
    actor = config.actor_rollout_ref.actor
    dtype = OmegaConf.select(actor, "fsdp_config.model_dtype") or "fp32"
    if dtype in FP32:
        return
    if not adapters(config.actor_rollout_ref.model):
        if OmegaConf.select(actor, "optim.override_optimizer_config.bf16_stochastic_round"):
            return  # torchao's AdamW, which keeps small steps on average
        raise ConfigError(
            f"actor_rollout_ref.actor.fsdp_config.model_dtype={dtype!r} is not allowed for weights that are trained: "
            "half precision rounds their steps away: set it to fp32; mixed_precision.param_dtype=bf16 computes in bf16"
        )
    if actor.strategy == "fsdp":
        raise ConfigError(
            f"actor_rollout_ref.actor.fsdp_config.model_dtype={dtype!r} with LoRA is not allowed under actor.strategy="
            "fsdp, which stores adapters as the base, and half precision rounds their steps away: use strategy=fsdp2"
        )


def check_head(config: DictConfig, hf_config: Any) -> None:
    """Refuse what the workers could only refuse once they run.

    Raises:
        ConfigError: LoRA adapters on the head, with the fused head or with tied embeddings; see also
            :func:`check_storage`.
        UnsupportedHead: a head that the fused head cannot replace; also a ValueError.
    """
    from wavalign_ext.integration import fused_head

    check_storage(config)
    model = config.actor_rollout_ref.model
    backend = OmegaConf.select(model, "fused_kernel_options.impl_backend")
    fused = bool(model.use_fused_kernels) and backend == fused_head.BACKEND
    if fused:
        fused_head.check_config(hf_config)
    if not fused and not adapters(model):
        return
    name, head = _head(hf_config, model.trust_remote_code)
    if adapters(model) and targets(model, name, head=True):
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


def targets(model: DictConfig, name: str, head: bool = False) -> bool:
    """Whether PEFT would put an adapter on the linear layer ``name``; ``head``: it is the output head."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    given: Any = OmegaConf.to_container(model, resolve=True)
    wanted = given["target_modules"]
    if wanted == "all-linear":
        if head:  # PEFT leaves it out
            return False
        wanted = ".*"
    settings = LoraConfig(target_modules=wanted, exclude_modules=given.get("exclude_modules"))
    return bool(check_target_module_exists(settings, name))
