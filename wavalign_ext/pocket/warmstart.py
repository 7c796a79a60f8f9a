"""The supervised start: a small Qwen2 taught to answer, and stopped while reinforcement still has work to do."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from wavalign_ext.pocket.domain import FORMS, LIKED, is_right
from wavalign_ext.speech.layout import ResolvedLayout

PARTS = 2  # of a batch, one a thread: the model's matrices are too small for threads inside of an operation
AT_ONCE = 192  # prompts that are sampled together


@dataclass(frozen=True)
class WarmStart:
    """How the model is made, and when it has been taught enough.

    Every ``check_every`` steps it answers questions; it stops at a share of ``target`` right, or after ``most_steps``.
    """

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 320
    batch: int = 32
    most_steps: int = 1200
    first_check: int = 400
    check_every: int = 40
    target: float = 0.75  # a check comes some steps after it: about half are right then
    learning_rate: float = 2e-3
    warm_up: int = 60
    averaging: float = 0.98  # of the weights, per step; what is checked and kept
    text_weight: float = 4.0
    noise: float = 0.08  # share of question units that are replaced; 0.6 of it is dropped as well
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """One spoken question with its target: token ids, the word that answers, and what it is a case of."""

    prompt_ids: list[int]
    target_ids: list[int]
    answer: str
    kind: str


# How often a kind is asked before the first check, 1 without an entry. Opposites, told apart by one word, come last.
FIRST_SHARES = {"opposite": 2.0, "month": 1.5}


def new_model(vocab_size: int, layout: ResolvedLayout, settings: WarmStart) -> Qwen2ForCausalLM:
    """An untrained model of about 0.7 million parameters."""
    torch.manual_seed(settings.seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads // 2,
            intermediate_size=settings.feed_forward,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=layout.eos_ids[0],
            pad_token_id=layout.pad_id,
        )
    )


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """For the moments of Adam that fade: on a CPU they would take most of the time. The process gets them back."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_denormals_flushed()
def train(
    model: Any,
    examples: Sequence[Example],
    layout: Any,
    settings: WarmStart,
    check: Callable[[Any], dict[str, float]],
    loss_of: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> list[dict[str, Any]]:
    """Teach ``model`` in place: cross-entropy on targets, text tokens weighing more; its average over steps is kept.

    ``loss_of`` is another model's loss, called as :func:`loss` is. ``check`` gives the share of right answers by kind.
    A kind is asked the more often the fewer answers are right, so that all kinds end about equally learnt. Returns what
    every check found.
    """
    rng = random.Random(settings.seed)
    shares = {example.kind: FIRST_SHARES.get(example.kind, 1.0) for example in examples}
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / settings.warm_up, total_iters=settings.warm_up)
    history: list[dict[str, Any]] = []
    progress = tqdm(total=settings.most_steps, desc="warm start", unit="step")
    with progress, ThreadPoolExecutor(PARTS, initializer=_of_this_thread) as threads:
        while progress.n < settings.most_steps:
            model.train()
            for batch in _batches(examples, shares, settings, rng):
                parts = [(batch[n::PARTS], random.Random(rng.random())) for n in range(min(PARTS, len(batch)))]
                value = _set_gradients(
                    model, [lambda p=p: (loss_of or loss)(model, p[0], layout, settings, p[1]) for p in parts], threads
                )
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                warm_up.step()
                average.update_parameters(model)
                progress.update()
            if progress.n < settings.first_check:
                continue
            averaged: Any = average.module.eval()
            right = check(averaged)
            right_share = float(np.mean(list(right.values())))
            history.append({"step": progress.n, "right": round(right_share, 3), "loss": round(value, 3), **right})
            progress.set_postfix(right=f"{right_share:.2f}")
            if right_share >= settings.target:
                break
            shares = {kind: 0.5 * share + 0.5 * (1.1 - right[kind]) for kind, share in shares.items()}
    model.load_state_dict(average.module.state_dict())
    model.eval()
    return history


def _of_this_thread() -> None:
    """Both settings hold for the thread that makes them."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _set_gradients(model: Any, losses: Sequence[Callable[[], Any]], threads: ThreadPoolExecutor) -> float:
    """Gradients of the mean over all parts; returns that mean. Each of ``losses`` gives (sum, sum of weights)."""
    parameters = list(model.parameters())

    def of_a_part(loss_of: Callable[[], Any]) -> tuple[Any, float, float]:
        total, weight = loss_of()
        return torch.autograd.grad(total, parameters), total.item(), weight.item()

    found = list(threads.map(of_a_part, losses))
    weight = sum(part[2] for part in found)
    for parameter, *gradients in zip(parameters, *(part[0] for part in found), strict=True):
        parameter.grad = torch.stack(gradients).sum(0) / weight
    return sum(part[1] for part in found) / weight


@torch.no_grad()
def sample(
    model: Qwen2ForCausalLM, prompts: Sequence[list[int]], layout: ResolvedLayout, *, temperature: float, top_p: float
) -> list[list[int]]:
    """One sampled response per prompt, in order; :data:`AT_ONCE` at a time."""
    answers: list[list[int]] = []
    for start in tqdm(range(0, len(prompts), AT_ONCE), "sampled answers", disable=len(prompts) <= 256, unit="batch"):
        chosen = prompts[start : start + AT_ONCE]
        width = max(map(len, chosen))
        ids = torch.full((len(chosen), width), layout.pad_id or 0)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(chosen):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        out: Any = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            max_new_tokens=90,
            pad_token_id=layout.pad_id,
        )
        answers += [[i for i in row if i != layout.pad_id] for row in out[:, width:].tolist()]
    return answers


def accuracy(
    model: Qwen2ForCausalLM,
    examples: Sequence[Example],
    layout: ResolvedLayout,
    tokenizer: Any,
    *,
    temperature: float = 0.7,
    top_p: float = 0.9,
    group: int = 4,
    lively: np.ndarray | None = None,
) -> dict[str, Any]:
    """Shares of sampled answers, ``group`` per example, that are right in any form, and in the form that is liked.

    Also of groups that are mixed and, where ``lively`` (codes,) says which codes are, of codes that sound lively.
    """
    asked = [example for example in examples for _ in range(group)]
    answers = sample(model, [example.prompt_ids for example in asked], layout, temperature=temperature, top_p=top_p)
    splits = [layout.split(ids) for ids in answers]
    texts = [tokenizer.decode(split.text_ids) for split in splits]
    right = np.array([is_right(text, example.answer) for text, example in zip(texts, asked, strict=True)])
    liked = [text == FORMS[LIKED].format(example.answer) for text, example in zip(texts, asked, strict=True)]
    kinds = sorted({example.kind for example in examples})
    found = {"right": round(float(right.mean()), 3), "liked": round(float(np.mean(liked)), 3)}
    if lively is not None:
        found["lively"] = round(float(np.mean([lively[split.codes].mean() for split in splits if split.codes])), 3)
    return found | {
        **{f"mixed_groups_of_{size}": _mixed(right, size) for size in (4, 8) if group % size == 0},
        "by_kind": {k: round(float(right[[e.kind == k for e in asked]].mean()), 3) for k in kinds},
        "temperature": temperature,
        "top_p": top_p,
        "answers": len(right),
    }


def _mixed(right: np.ndarray, size: int) -> float:
    """Share of the groups of ``size`` consecutive answers with some right and some wrong."""
    share = right.reshape(-1, size).mean(1)
    return round(float(((share > 0) & (share < 1)).mean()), 3)


def _batches(
    examples: Sequence[Example], shares: dict[str, float], settings: WarmStart, rng: random.Random
) -> list[list[Example]]:
    """The batches up to the next check, kinds by their shares; a batch's examples are about equally long."""
    by_kind: dict[str, list[Example]] = {}
    for example in examples:
        by_kind.setdefault(example.kind, []).append(example)
    kinds = rng.choices(list(by_kind), [shares[kind] for kind in by_kind], k=settings.batch * settings.check_every)
    drawn = [rng.choice(by_kind[kind]) for kind in kinds]
    batches = []
    span = settings.batch * 10  # sorting only so many at once keeps batches of mixed kinds
    for start in range(0, len(drawn), span):
        near = sorted(drawn[start : start + span], key=lambda e: len(e.prompt_ids) + len(e.target_ids))
        some = [near[i : i + settings.batch] for i in range(0, len(near), settings.batch)]
        rng.shuffle(some)
        batches += some
    return batches


def loss(
    model: Qwen2ForCausalLM, batch: Sequence[Example], layout: ResolvedLayout, settings: WarmStart, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of −log p of the targets' ids, a text token weighing ``text_weight``; sum of the weights)."""
    rows = [(_disturbed(example.prompt_ids, layout, settings.noise, rng), example.target_ids) for example in batch]
    width = max(len(prompt) + len(target) for prompt, target in rows)
    ids, wanted = torch.full((len(rows), width), layout.pad_id or 0), torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, target) in enumerate(rows):
        ids[row, : len(prompt) + len(target)] = torch.tensor(prompt + target)
        wanted[row, len(prompt) : len(prompt) + len(target)] = True
    hidden: Any = model.model(input_ids=ids).last_hidden_state
    labels = ids[:, 1:][wanted[:, 1:]]
    losses = torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted[:, 1:]]), labels, reduction="none")
    weights = torch.where(layout.modality(labels) == 0, settings.text_weight, 1.0)
    return (losses * weights).sum(), weights.sum()


def _disturbed(prompt: list[int], layout: ResolvedLayout, noise: float, rng: random.Random) -> list[int]:
    """The prompt as a worse microphone would give it: some units of the question replaced, some lost."""
    out = []
    for i in prompt:
        if layout.user_speech_start <= i < layout.user_speech_end:
            if rng.random() < 0.6 * noise:
                continue
            if rng.random() < noise:
                i = rng.randrange(layout.user_speech_start, layout.user_speech_end)
        out.append(i)
    return out
