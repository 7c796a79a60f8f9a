"""A layout with 64 speech tokens, 16 of the user's, and the tokenizer that it fits."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

BASE: dict[str, Any] = {
    "name": "test",
    "speech": {"pattern": "<|audio_{}|>", "count": 64},
    "user_speech": {"pattern": "<|heard_{}|>", "count": 16},
    "begin": "<|begin_of_audio|>",
    "end": "<|end_of_audio|>",
    "schedule": [[1, 4], [3, 8], [4, 10]],
    "eos": ["<|im_end|>"],
    "pad": "<|endoftext|>",
}
WORDS = 40
SPECIALS = ("<|endoftext|>", "<|im_end|>", "<|user|>", "<|observation|>", "<|begin_of_audio|>", "<|end_of_audio|>")


def make_tokenizer(
    skip: str = "", heard: int = 16, speech: int = 64, specials: tuple[str, ...] = SPECIALS
) -> PreTrainedTokenizerFast:
    words = ["<unk>", *(f"w{i}" for i in range(WORDS))]
    names = [*specials, *(f"<|heard_{i}|>" for i in range(heard)), *(f"<|audio_{i}|>" for i in range(speech))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(words)}, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names if name != skip])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZER = make_tokenizer()
