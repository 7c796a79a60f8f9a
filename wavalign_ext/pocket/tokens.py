"""One vocabulary for words, the user's speech, the answer's speech, and boundaries."""

from transformers import AddedToken, Qwen2Tokenizer

from wavalign_ext.speech.layout import Layout, TokenRange

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLES = ("system\n", "user\n", "assistant\n")
MORE_THAN_ENOUGH = 4000  # training ends when every word is one token, long before


def build_tokenizer(sentences: list[str], layout: Layout) -> Qwen2Tokenizer:
    """Qwen's byte-level BPE trained until each word is a token, then the special tokens; ``len()`` is the vocabulary.

    It stays a Qwen2Tokenizer because transformers loads nothing else for a Qwen2 model.
    """
    corpus = [*sentences, *(role * 2 for role in ROLES)]
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(corpus, MORE_THAN_ENOUGH, show_progress=False)
    specials = [PAD, START, END, *(name for name in (layout.begin, layout.end) if name)]
    for tokens in (layout.user_speech, layout.speech):
        assert isinstance(tokens, TokenRange) and tokens.pattern is not None
        specials += [tokens.pattern.format(code) for code in range(tokens.count)]
    added = [AddedToken(name, special=True, normalized=False) for name in specials]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.eos_token, tokenizer.pad_token = END, PAD
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
