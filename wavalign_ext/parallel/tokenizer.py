"""The joint vocabulary of both streams: text ids first, then codes, end tokens, and what stands in prompts only."""

from transformers import AddedToken, Qwen2Tokenizer

from wavalign_ext.parallel.config import TwoStreamConfig
from wavalign_ext.pocket.tokens import MORE_THAN_ENOUGH, PAD
from wavalign_ext.speech.layout import Layout, TokenRange
from wavalign_ext.speech.parallel import ParallelLayout

START, END = "<|im_start|>", "<|im_end|>"
ROLES = ("system\n", "user\n", "assistant\n")
MESSAGE = "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"


def build_tokenizer(sentences: list[str], layout: Layout) -> Qwen2Tokenizer:
    """Qwen's byte-level BPE trained until each word is a token, then the tokens of a parallel layout in their order."""
    streams = layout.streams
    assert streams is not None
    corpus = [*sentences, *(role * 2 for role in ROLES)]
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(corpus, MORE_THAN_ENOUGH, show_progress=False)
    names = [PAD, START, END, streams.text_blank, streams.text_end]
    names += _names(layout.speech) + [*layout.eos, streams.audio_blank, streams.audio_start]
    names += _names(layout.user_speech) if layout.user_speech is not None else []
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    tokenizer.pad_token = tokenizer.eos_token = PAD
    start = "{% if add_generation_prompt %}" + streams.audio_start + "{% endif %}"
    tokenizer.chat_template = "{% for message in messages %}" + MESSAGE + "{% endfor %}" + start
    return tokenizer


def _names(tokens: object) -> list[str]:
    assert isinstance(tokens, TokenRange) and tokens.pattern is not None
    return [tokens.pattern.format(code) for code in range(tokens.count)]


def model_config(layout: ParallelLayout, size: int, **shape: object) -> TwoStreamConfig:
    """The configuration of a model for a tokenizer of ``size`` tokens, as :func:`build_tokenizer` orders them."""
    first = layout.speech_start
    return TwoStreamConfig(
        text_vocab=first,
        audio_vocab=size - first,
        audio_said=max(layout.eos_ids) + 1 - first,
        delay=layout.delay,
        text_blank=layout.text_blank,
        text_end=layout.text_end,
        audio_blank=layout.audio_blank,
        audio_start=layout.audio_start,
        audio_end=list(layout.eos_ids),
        architectures=["TwoStreamForCausalLM"],
        pad_token_id=layout.pad_id,
        **shape,  # type: ignore[arg-type]
    )
