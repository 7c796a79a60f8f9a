"""The shape of a two-stream model, which is Kimi-Audio's, in the ids of one joint vocabulary."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config

MODEL_TYPE = "wavalign_two_streams"
HEARING_TYPE = "wavalign_hearing_two_streams"
MODEL_TYPES = (MODEL_TYPE, HEARING_TYPE)


@strict
class TwoStreamConfig(Qwen2Config):
    """Qwen2 layers with a second branch: layers ``audio_layers`` take the hidden states behind layer ``fork_layer``.

    Ids: text below ``text_vocab``; audio from there on, ``audio_vocab`` of them, of which the first ``audio_said`` can
    be said (codes, then end tokens); the others stand in prompts only. ``num_hidden_layers`` counts the shared layers
    and those of the text branch. ``audio_rows``: rows of the embedding for the last audio ids, where they share a text
    token's, as all control tokens of Kimi-Audio do. The remaining fields are those of a layout's ``streams``, by id.
    """

    model_type = MODEL_TYPE

    text_vocab: int = 300
    audio_vocab: int = 600
    audio_said: int = 590
    fork_layer: int = 1
    audio_layers: int = 1
    delay: int = 5
    text_blank: int = 1
    text_end: int = 2
    audio_blank: int = 890
    audio_start: int = 891
    audio_end: list[int] | tuple[int, ...] = (889,)
    audio_rows: list[int] | tuple[int, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        self.vocab_size = self.text_vocab + self.audio_vocab
        super().__post_init__(**kwargs)

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding that both streams share."""
        return self.vocab_size - len(self.audio_rows)

    @property
    def codes(self) -> int:
        """How many of the audio ids are codes: those below the first end token."""
        return min(self.audio_end) - self.text_vocab


@strict
class HearingTwoStreamConfig(TwoStreamConfig):
    """A two-stream model whose user's codes have an encoder's vectors added to them, as Kimi-Audio's have Whisper's.

    ``media_begin`` is the audio id before the user's codes; ``audio_feature_size`` the numbers per vector, one for each
    code; ``audio_most`` the most codes of one recording; ``audio_encoder`` is the encoder's type, of
    :mod:`wavalign_ext.speech.encoders`.
    """

    model_type = HEARING_TYPE

    media_begin: int = 892
    audio_feature_size: int = 5120
    audio_most: int = 1500
    audio_encoder: str = "whisper"
