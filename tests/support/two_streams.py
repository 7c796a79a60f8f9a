"""A tiny two-stream model, prompts for it, and what it says of an answer when it is taught: what vLLM is compared with.

pytest has this folder on its path: ``from two_streams import make``.
"""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Frames = tuple[Tensor, Tensor]  # text and audio ids (F,) of the joint vocabulary
HEARD = 40  # units that the user says, behind the codes, the ends and the two control tokens
KIMI = {"text": 152064, "codes": 16384, "delay": 6}  # sizes of Kimi-Audio's vocabulary
# Read on the text stream of the tiny model; Kimi-Audio's are where its tokenizer has them.
BLANK, END = 1, 2


def config(text: int = 300, codes: int = 500, ends: int = 2, delay: int = 5, shared_rows: int = 0, **more: Any) -> Any:
    """A configuration with audio ids in this order: codes, end tokens, blank, start, what the user says."""
    from wavalign_ext.parallel.config import TwoStreamConfig

    first = text + codes
    made = TwoStreamConfig(
        text_vocab=text,
        audio_vocab=codes + ends + 2 + HEARD,
        audio_said=codes + ends,
        delay=delay,
        text_blank=BLANK,
        text_end=END,
        audio_blank=first + ends,
        audio_start=first + ends + 1,
        audio_end=[first + number for number in range(ends)],
        audio_rows=list(range(5, 5 + shared_rows)),
        **{
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        }
        | more,
    )
    made.architectures = ["TwoStreamForCausalLM"]
    return made


def make(folder: Path | None = None, seed: int = 0, **shape: Any) -> Any:
    """The model in fp32; its weights are spread wide, so that a wrong id shows. Saved into ``folder``."""
    import wavalign_ext.parallel
    from wavalign_ext.parallel.model import TwoStreamForCausalLM

    wavalign_ext.parallel.register()
    torch.manual_seed(seed)
    model: Any = TwoStreamForCausalLM(config(**shape)).float().eval()
    for name, parameter in model.named_parameters():
        if "embed" in name:
            torch.nn.init.normal_(parameter, std=1.0)
        elif parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.15)
        elif name.endswith("proj.bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    if folder is not None:
        model.save_pretrained(folder)
    return model


def prompts(c: Any, count: int, seed: int = 0, lengths: tuple[int, int] = (8, 90)) -> list[Frames]:
    """What a user says over text blanks, some text over audio blanks, and the token that starts an answer."""
    rng, found = random.Random(seed), []
    heard = range(c.vocab_size - HEARD, c.vocab_size)
    for _ in range(count):
        spoken, written = rng.randint(*lengths), rng.randint(0, 6)
        text = [c.text_blank] * spoken + [rng.randrange(5, c.text_vocab) for _ in range(written)] + [c.text_blank]
        audio = [rng.choice(heard) for _ in range(spoken)] + [c.audio_blank] * written + [c.audio_start]
        found.append((torch.tensor(text), torch.tensor(audio)))
    return found


def flat(text: Tensor, audio: Tensor) -> list[int]:
    return torch.stack([text, audio], -1).flatten().tolist()


@torch.no_grad()
def taught(model: Any, prompt: Frames, answer: list[int], temperature: float = 1.0, top_k: int = 0) -> Tensor:
    """Log-probs (2F,) of a flat answer (2F,), in one forward pass over prompt and answer; 0 where an id is never said.

    Both streams' distributions are sharpened by ``temperature``, and cut to the ``top_k`` likeliest ids.
    """
    ids = torch.tensor(flat(*prompt) + answer)
    logits = model(ids[None, 0::2], ids[None, 1::2]).logits
    frames, columns = len(answer) // 2, []
    for stream, (scores, first) in enumerate(zip(logits, (0, model.config.text_vocab), strict=True)):
        scores = scores[0, -frames - 1 : -1].float() / temperature
        if top_k:
            scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -torch.inf)
        logp = scores.log_softmax(-1)
        wanted = torch.tensor(answer[stream::2]) - first
        said = wanted < logp.shape[-1]
        columns.append(logp.gather(1, wanted.where(said, 0)[:, None])[:, 0].where(said, 0.0))
    return torch.stack(columns, -1).flatten()
