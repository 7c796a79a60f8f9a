"""The same model in vLLM 0.24: a recording is its vectors (frames, size), and prompts have a placeholder for each.

So what is trained on is what is sampled from: nothing is rendered or counted anew on vLLM's side. The placeholder is
never sampled; training's softmax has its probability in it, which a trained model keeps near 0.
"""

# vLLM annotates more narrowly than it behaves.
# pyright: reportIncompatibleMethodOverride=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.utils import _merge_multimodal_embeddings
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from wavalign_ext.models.projectors import dtype_of, make_projector


class HeardItems(ModalityDataItems):
    """Vectors of recordings. No processor of transformers has work with them."""

    def __init__(self, data: Iterable[Tensor]) -> None:
        super().__init__(list(data), "audio")

    def get_count(self) -> int:
        return len(self.data)

    def get(self, index: int) -> Tensor:
        return self.data[index]

    def get_processor_data(self) -> Mapping[str, object]:
        return {}

    def get_passthrough_data(self) -> Mapping[str, object]:
        return {"audio_features": self.data}


class Parser(MultiModalDataParser):
    """vLLM's own would take a tensor for a waveform."""

    def _parse_audio_data(self, data: Any) -> HeardItems | None:
        return None if data is None else HeardItems([torch.as_tensor(item) for item in data])


class Info(BaseProcessingInfo):
    """Any number of recordings, each of at most ``audio_most`` vectors."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"audio": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"audio": self.get_hf_config().audio_most}

    def get_data_parser(self) -> Parser:
        return Parser()


class Dummy(BaseDummyInputsBuilder):
    """What vLLM measures its memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        config = self.info.get_hf_config()
        token = self.info.get_tokenizer().convert_ids_to_tokens(config.audio_token_id)
        return token * config.audio_most * mm_counts.get("audio", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], *_: Any, **__: Any) -> Mapping[str, Any]:
        config = self.info.get_hf_config()
        longest = torch.zeros(config.audio_most, config.audio_feature_size)
        return {"audio": [longest] * mm_counts.get("audio", 0)}


class Processor(BaseMultiModalProcessor):
    """Leaves prompts as they are, and finds the placeholders of each recording in them."""

    def _call_hf_processor(self, prompt: str, mm_data: Any, mm_kwargs: Any, tok_kwargs: Any) -> BatchFeature:
        return BatchFeature({"input_ids": [self.info.get_tokenizer().encode(prompt, add_special_tokens=False)]})

    def _hf_processor_applies_updates(self, *_: Any, **__: Any) -> bool:
        return True

    def _apply_hf_processor_main(self, *args: Any, **kwargs: Any) -> Any:
        ids, data, _ = super()._apply_hf_processor_main(*args, **kwargs)
        return ids, data, True  # with its placeholders in it, where vLLM assumes that ids have none yet

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, MultiModalFieldConfig]:
        return {"audio_features": MultiModalFieldConfig.batched("audio")}

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
        token = self.info.get_hf_config().audio_token_id
        items = mm_items.get_items("audio", HeardItems)
        return [
            PromptReplacement(
                modality="audio", target=[token], replacement=lambda number: [token] * len(items.get(number))
            )
        ]


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Dummy)
class HearingQwen2ForCausalLM(Qwen2ForCausalLM, SupportsMultiModal):
    """vLLM's Qwen2ForCausalLM and ``audio_projection``, whose weights have transformers' names."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = self.config
        self.audio_projection = make_projector(config.audio_projector, config.audio_feature_size, config.hidden_size)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        raise ValueError("prompts come with their placeholders: build them with wavalign prepare")

    def get_language_model(self) -> torch.nn.Module:
        return self.model

    def embed_multimodal(self, audio_features: Any = None, **_: Any) -> Any:
        """The projected vectors (frames, H) of each recording."""
        if audio_features is None:
            return []
        weight = next(self.audio_projection.parameters())
        dtype = dtype_of(self.audio_projection)
        return tuple(self.audio_projection(item.to(weight.device, dtype)) for item in audio_features)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """Embeddings, the projected vectors in place of the placeholders'."""
        embeddings = self.model.embed_input_ids(input_ids)
        if multimodal_embeddings is None or len(multimodal_embeddings) == 0:
            return embeddings
        return _merge_multimodal_embeddings(embeddings, multimodal_embeddings, is_multimodal)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Those of Qwen2, the placeholder's −∞: sampled, nothing would stand behind it."""
        logits = super().compute_logits(hidden_states)
        if logits is not None:
            logits[..., self.config.audio_token_id] = float("-inf")
        return logits
