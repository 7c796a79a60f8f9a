"""The two-stream model for transformers: the actor, the reference policy, and what vLLM's is compared with."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding

from wavalign_ext.models.projectors import KimiProjector
from wavalign_ext.parallel.config import HearingTwoStreamConfig, TwoStreamConfig
from wavalign_ext.parallel.pairs import embedding_rows, heard_places


class TwoStreamModel(nn.Module):
    """Embedding, layers and norms of both branches; the forward pass is the causal model's."""

    def __init__(self, config: TwoStreamConfig) -> None:
        super().__init__()
        # A layer reads layer_types by its own number: the audio branch's stand behind the text branch's in the cache.
        own = copy.deepcopy(config)
        shared, own.num_hidden_layers = config.num_hidden_layers, config.num_hidden_layers + config.audio_layers
        own.layer_types = ["full_attention"] * own.num_hidden_layers
        own._attn_implementation = config._attn_implementation
        self.embed_tokens = nn.Embedding(config.embedding_rows, config.hidden_size)
        self.layers = nn.ModuleList(Qwen2DecoderLayer(own, number) for number in range(shared))
        self.audio_layers = nn.ModuleList(
            Qwen2DecoderLayer(own, number) for number in range(shared, own.num_hidden_layers)
        )
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.audio_norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(own)


class TwoStreamForCausalLM(PreTrainedModel):
    """Text and audio ids of each frame in, logits of both streams out.

    The audio head has a row for each id that can be said, and no other: ``audio_said`` of them.
    """

    config_class = TwoStreamConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2DecoderLayer"]
    _supports_sdpa = _supports_flash_attn = True
    _tied_weights_keys: Any = None

    def __init__(self, config: TwoStreamConfig) -> None:
        super().__init__(config)
        self.model = TwoStreamModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.text_vocab, bias=False)
        self.audio_head = nn.Linear(config.hidden_size, config.audio_said, bias=False)
        self.prepare_inputs_for_generation = None  # PEFT asks for it; transformers' own generation knows one stream
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def embed_audio(self, audio_ids: Tensor, audio_features: Tensor | None) -> Tensor:
        """(B, F) joint audio ids → (B, F, H)."""
        return self.model.embed_tokens(embedding_rows(self.config, audio_ids))

    def forward(
        self,
        input_ids: Tensor,
        audio_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        audio_features: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """(B, F) joint ids of each stream → ``logits``: (B, F, T) of text, (B, F, ``audio_said``) of audio.

        ``audio_features``: see :class:`HearingTwoStreamForCausalLM`.
        """
        model = self.model
        hidden = model.embed_tokens(input_ids) + self.embed_audio(audio_ids, audio_features)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        common = {"attention_mask": mask, "position_ids": position_ids, "past_key_values": past_key_values}
        common |= {"use_cache": use_cache, "position_embeddings": model.rotary_emb(hidden, position_ids), **kwargs}
        audio = hidden
        for number, layer in enumerate(model.layers):
            hidden = layer(hidden, **common)
            audio = hidden if number == self.config.fork_layer else audio
        for layer in model.audio_layers:
            audio = layer(audio, **common)
        logits = (self.lm_head(model.norm(hidden)), self.audio_head(model.audio_norm(audio)))
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]


class HearingTwoStreamForCausalLM(TwoStreamForCausalLM):
    """Kimi-Audio's: the user's codes and what an encoder heard, added up and scaled by the root of 2.

    ``audio_features`` (codes, size) are the vectors of all recordings of the rows, one after another.
    """

    config_class = HearingTwoStreamConfig

    def __init__(self, config: HearingTwoStreamConfig) -> None:
        super().__init__(config)
        self.audio_projection = KimiProjector(config.audio_feature_size, config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def embed_audio(self, audio_ids: Tensor, audio_features: Tensor | None) -> Tensor:
        """See the base class; without vectors the projector runs on none, so that all ranks of FSDP gather it.

        Raises:
            ValueError: not as many vectors as the user's codes.
        """
        embedded, place = super().embed_audio(audio_ids, None), heard_places(self.config, audio_ids)
        features = embedded.new_zeros(0, self.config.audio_feature_size) if audio_features is None else audio_features
        if (count := int(place.sum())) != len(features):
            raise ValueError(f"{count} codes of the user and {len(features)} vectors of the encoder: one for each code")
        heard = self.audio_projection(features.to(embedded.device, embedded.dtype)).to(embedded.dtype)
        spread = torch.zeros_like(embedded).masked_scatter(place[..., None], heard)
        both = (embedded + spread) * embedded.new_tensor(2.0).sqrt()
        return torch.where(place[..., None], both, embedded)
