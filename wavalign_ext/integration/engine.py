"""verl's FSDP engines with WavAlign's head, and the same on a CPU with gloo.

verl registers its engines for ``cuda`` and ``npu``, and looks for a vendor's first. The vendor ``wavalign`` is ours: a
process has it by ``VERL_ENGINE_VENDOR``, and finds what it lacks among verl's. For ``cpu`` verl has no engine. A
forward-only one (the reference policy) asks for pinned memory, which needs an accelerator: on a CPU the same offload
policy without pinning is used while the module is built.
"""

from typing import Any

from torch.distributed.fsdp import CPUOffloadPolicy
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl

from wavalign_ext import plugin
from wavalign_ext.integration.checked_weights import CheckedWeights
from wavalign_ext.integration.fused_head import FusedHeadEngine
from wavalign_ext.integration.lora import Fp32Adapters
from wavalign_ext.parallel.engine import TwoStreamEngine


def _unpinned(pin_memory: bool = False) -> CPUOffloadPolicy:
    return CPUOffloadPolicy(pin_memory=False)


class _OnCpu:
    def _build_fsdp_module(self, module: Any) -> Any:
        original = transformer_impl.CPUOffloadPolicy  # pyright: ignore[reportPrivateImportUsage]
        transformer_impl.CPUOffloadPolicy = _unpinned  # type: ignore[misc,assignment]
        try:
            return super()._build_fsdp_module(module)  # type: ignore[misc]
        finally:
            transformer_impl.CPUOffloadPolicy = original  # type: ignore[misc]


@EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device="cuda", vendor=plugin.ENGINE_VENDOR
)
class WavAlignFSDPEngine(
    TwoStreamEngine, CheckedWeights, FusedHeadEngine, Fp32Adapters, transformer_impl.FSDPEngineWithLMHead
):
    """verl's own engine but for LoRA, the fused head and models with two streams."""


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")
class CpuFSDPEngineWithLMHead(
    TwoStreamEngine, _OnCpu, CheckedWeights, FusedHeadEngine, Fp32Adapters, transformer_impl.FSDPEngineWithLMHead
):
    """The policy and reference engine on a CPU."""


@EngineRegistry.register(model_type="value_model", backend="fsdp2", device="cpu")
class CpuFSDPEngineWithValueHead(_OnCpu, transformer_impl.FSDPEngineWithValueHead):
    """The critic engine on a CPU."""
