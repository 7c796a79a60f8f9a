"""The two-stream model whose user's codes have an encoder's vectors added, for vLLM.

A recording's vectors (codes, size) come as multi-modal data, so that vLLM's prefix cache tells recordings with equal
codes apart; where they belong is read off the prompt: :func:`wavalign_ext.parallel.pairs.heard_places`.
"""

# vLLM annotates more narrowly than it behaves.
# pyright: reportIncompatibleMethodOverride=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.utils import _merge_multimodal_embeddings
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import BaseDummyInputsBuilder, BaseMultiModalProcessor, ProcessorInputs
from vllm.multimodal.processing.processor import PlaceholderFeaturesInfo

from wavalign_ext.models.hearing_vllm import Info
from wavalign_ext.models.projectors import KimiProjector, dtype_of
from wavalign_ext.parallel.pairs import Pairs, heard_places
from wavalign_ext.parallel.vllm_model import TwoStreamForCausalLM


class Dummy(BaseDummyInputsBuilder):
    """What vLLM measures its memory with; there is no tokenizer, so prompts are ids."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], *_: Any, **__: Any) -> Mapping[str, Any]:
        config = self.info.get_hf_config()
        longest = torch.zeros(config.audio_most, config.audio_feature_size)
        return {"audio": [longest] * mm_counts.get("audio", 0)}

    def get_dummy_processor_inputs(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any = None
    ) -> ProcessorInputs:
        config = self.info.get_hf_config()
        heard = [config.media_begin, *[config.text_vocab] * config.audio_most, config.audio_end[-1]]
        flat = [i for audio in heard * mm_counts.get("audio", 0) for i in (config.text_blank, audio)]
        data = self.info.parse_mm_data(self.get_dummy_mm_data(seq_len, mm_counts), validate=False)
        return ProcessorInputs(prompt=Pairs(config).from_flat(flat), mm_data_items=data, tokenization_kwargs={})


class Processor(BaseMultiModalProcessor):
    """Leaves prompts as they are, and finds the codes of each recording in them."""

    def _call_hf_processor(self, prompt: str, mm_data: Any, mm_kwargs: Any, tok_kwargs: Any) -> BatchFeature:
        return BatchFeature({"input_ids": [[0]]})  # of a text that nobody gives

    def _hf_processor_applies_updates(self, *_: Any, **__: Any) -> bool:
        return True

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, MultiModalFieldConfig]:
        return {"audio_features": MultiModalFieldConfig.batched("audio")}

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
        return []

    def _maybe_apply_prompt_updates(
        self, mm_items: Any, prompt_ids: list[int], mm_kwargs: Any, mm_prompt_updates: Any, is_update_applied: bool
    ) -> tuple[list[int], Mapping[str, list[PlaceholderFeaturesInfo]]]:
        """The prompt, and the runs of the user's codes. Raises ValueError: they are not as many as the vectors."""
        config = self.info.get_hf_config()
        pairs = Pairs(config)
        _, audio = pairs.true_ids(*pairs.decode(torch.tensor(prompt_ids)))
        place = [False, *heard_places(config, audio).tolist(), False]
        starts = [n for n in range(len(prompt_ids)) if place[n + 1] and not place[n]]
        stops = [n + 1 for n in range(len(prompt_ids)) if place[n + 1] and not place[n + 2]]
        found, items = [stop - start for start, stop in zip(starts, stops, strict=True)], mm_items.get("audio") or ()
        vectors = [len(items.get(number)) for number in range(len(items))] if items else []
        if found != vectors:
            raise ValueError(f"the prompt has {found} codes of the user, the encoder {vectors} vectors: one for each")
        runs = [
            PlaceholderFeaturesInfo("audio", number, start, prompt_ids[start:stop], None)
            for number, (start, stop) in enumerate(zip(starts, stops, strict=True))
        ]
        return prompt_ids, {"audio": runs} if runs else {}


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Dummy)
class HearingTwoStreamForCausalLM(TwoStreamForCausalLM, SupportsMultiModal):
    """:class:`TwoStreamForCausalLM` and ``audio_projection``, whose weights have transformers' names."""

    requires_raw_input_tokens = True  # what is forced next is read off the ids

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = self.config
        self.audio_projection = KimiProjector(config.audio_feature_size, config.hidden_size, config.rms_norm_eps)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        raise ValueError("prompts come with their codes: build them with wavalign prepare")

    def get_language_model(self) -> torch.nn.Module:
        return self.model

    def embed_multimodal(self, audio_features: Any = None, **_: Any) -> Any:
        """The projected vectors (codes, H) of each recording."""
        if audio_features is None:
            return []
        weight, dtype = next(self.audio_projection.parameters()), dtype_of(self.audio_projection)
        return tuple(self.audio_projection(item.to(weight.device, dtype)) for item in audio_features)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """(N,) pairs → (N, H); the user's codes and their vectors are added up and scaled by the root of 2."""
        text, audio = self.model.embed_streams(input_ids)
        if multimodal_embeddings is not None and len(multimodal_embeddings) and is_multimodal is not None:
            heard = _merge_multimodal_embeddings(torch.zeros_like(audio), multimodal_embeddings, is_multimodal)
            both = (audio + heard) * audio.new_tensor(2.0).sqrt()
            audio = torch.where(is_multimodal.to(audio.device)[:, None], both, audio)
        return text + audio
