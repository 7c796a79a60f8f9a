"""Qwen2 whose placeholders are what an encoder has heard: the class that verl trains.

The encoder is outside, frozen; its vectors arrive as ``audio_features``, and the projector learns with the model.
"""

from typing import Any

from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from wavalign_ext.models.names import MODEL_TYPE
from wavalign_ext.models.projectors import make_projector


class HearingQwen2Config(Qwen2Config):
    """Qwen2's, with the placeholder's id, the size of a vector, the most of them per recording, and the projector.

    ``audio_encoder`` is the encoder's type, of :mod:`wavalign_ext.speech.encoders`.
    """

    model_type = MODEL_TYPE
    audio_token_id: int = 0
    audio_feature_size: int = 512
    audio_most: int = 504
    audio_projector: str = "vita"
    audio_encoder: str = "sensevoice"


class HearingQwen2ForCausalLM(Qwen2ForCausalLM):
    """Qwen2ForCausalLM and ``audio_projection``."""

    config_class = HearingQwen2Config
    config: HearingQwen2Config

    def __init__(self, config: HearingQwen2Config) -> None:
        super().__init__(config)
        self.audio_projection = make_projector(config.audio_projector, config.audio_feature_size, config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        inputs_embeds: Tensor | None = None,
        audio_features: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As Qwen2ForCausalLM's; ``audio_features`` (frames, size) are all recordings of the rows, one after another.

        Raises:
            ValueError: ``input_ids`` (R, N) have more or fewer placeholders than there are vectors.
        """
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        embeddings: Any = inputs_embeds
        if embeddings is None and input_ids is not None:
            embeddings = self.embed(input_ids, audio_features) if first else self.get_input_embeddings()(input_ids)
        # attention_mask by name: generate() looks for it in the signature
        return super().forward(
            attention_mask=attention_mask, inputs_embeds=embeddings, past_key_values=past_key_values, **kwargs
        )

    def embed(self, input_ids: Tensor, audio_features: Tensor | None) -> Tensor:
        """Embeddings (R, N, H) of ``input_ids`` (R, N), the projected vectors in place of the placeholders'.

        Without any, the projector runs on none: each rank of FSDP must gather and reduce the same parameters.

        Raises:
            ValueError: more or fewer placeholders than there are vectors.
        """
        embeddings, features = self.get_input_embeddings()(input_ids), audio_features
        if features is None:
            features = embeddings.new_zeros(0, self.config.audio_feature_size)
        place = input_ids == self.config.audio_token_id
        if (count := int(place.sum())) != len(features):
            raise ValueError(f"{count} placeholders (id {self.config.audio_token_id}) and {len(features)} vectors")
        heard = self.audio_projection(features.to(embeddings.device, embeddings.dtype))
        return embeddings.masked_scatter(place[..., None], heard.to(embeddings.dtype))

    def prepare_inputs_for_generation(self, *args: Any, audio_features: Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' ``generate`` hands the vectors on; only the first pass, over the prompt, reads them."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return inputs | {"audio_features": audio_features}
