"""One vocabulary for words, the user's speech, the answer's speech, and boundaries."""

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from wavalign_ext.layout import Layout, TokenRange

PAD, START, END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def build_tokenizer(words: list[str], layout: Layout) -> PreTrainedTokenizerFast:
    """Words by whitespace, everything else as special tokens; ``len()`` is the model's vocabulary size."""
    names = [UNKNOWN, PAD, START, END, layout.begin, layout.end]
    vocabulary = {name: i for i, name in enumerate([*names, "system", "user", "assistant", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    specials = [name for name in names if name]
    for tokens in (layout.heard, layout.speech):
        assert isinstance(tokens, TokenRange) and tokens.pattern is not None
        specials += [tokens.pattern.format(code) for code in range(tokens.count)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
