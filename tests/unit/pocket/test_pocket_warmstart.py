"""The supervised start, on a model and a vocabulary small enough for seconds."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from wavalign_ext.pocket.domain import FORMS, LIKED, items, questions
from wavalign_ext.pocket.tokens import build_tokenizer
from wavalign_ext.pocket.warmstart import (
    AT_ONCE,
    Example,
    WarmStart,
    _batches,
    _disturbed,
    _set_gradients,
    accuracy,
    loss,
    new_model,
    sample,
    train,
)
from wavalign_ext.speech.layout import load_layout

WORDS = [form.format(item.word) for item in items() for form in FORMS.values()]
TOKENIZER = build_tokenizer([q.text for q in questions()] + WORDS, load_layout("pocket"))
LAYOUT = load_layout("pocket").resolve(TOKENIZER)
SMALL = WarmStart(
    hidden=32, layers=1, heads=2, feed_forward=64, batch=8, most_steps=120, first_check=40, check_every=20, target=0.99,
    learning_rate=1e-2, warm_up=5, averaging=0.8, noise=0.0,
)  # fmt: skip


def example(kind: str, word: str, form: str, code: int, heard: int = 4) -> Example:
    message = [{"role": "user", "content": LAYOUT.user_speech_prompt([code] * heard)}]
    prompt = TOKENIZER.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False)
    text = TOKENIZER.encode(FORMS[form].format(word), add_special_tokens=False)
    return Example(list(prompt), LAYOUT.target(text, [code] * 8), word, kind)


EXAMPLES = [example("color", "black", LIKED, 3), example("capital", "oslo", "hedged", 9, 6)]


def share_right(model: torch.nn.Module) -> dict[str, float]:
    return accuracy(model, EXAMPLES, LAYOUT, TOKENIZER, temperature=0.1, group=1)["by_kind"]  # type: ignore[arg-type]


def test_it_learns_two_answers_then_stops_and_does_the_same_again() -> None:
    runs = []
    for _ in range(2):
        model = new_model(len(TOKENIZER), LAYOUT, SMALL)
        history = train(model, EXAMPLES, LAYOUT, SMALL, share_right)
        runs.append((history, {name: value.clone() for name, value in model.state_dict().items()}))
    history = runs[0][0]
    assert history[-1]["right"] == 1.0 and history[0]["step"] >= SMALL.first_check
    assert history[-1]["step"] < SMALL.most_steps
    assert [h["right"] for h in history[:-1]] == [h["right"] for h in history if h["right"] < SMALL.target]
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


def test_parts_of_a_batch_have_the_whole_batch_s_gradient() -> None:
    """Of the mean over all tokens, not of the means of the parts."""
    batch = [*EXAMPLES, example("day", "monday", "bare", 5)]
    model = new_model(len(TOKENIZER), LAYOUT, SMALL)
    total, weight = loss(model, batch, LAYOUT, SMALL, random.Random(0))
    expected = torch.autograd.grad(total / weight, list(model.parameters()))
    parts = [lambda p=p: loss(model, p, LAYOUT, SMALL, random.Random(0)) for p in (batch[:2], batch[2:])]
    with ThreadPoolExecutor(2) as threads:
        assert _set_gradients(model, parts, threads) == pytest.approx((total / weight).item(), rel=1e-6)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_it_gives_up_after_the_most_steps() -> None:
    settings = replace(SMALL, most_steps=40, first_check=20, learning_rate=0.0)
    model = new_model(len(TOKENIZER), LAYOUT, settings)
    history = train(model, EXAMPLES, LAYOUT, settings, lambda model: {"color": 0.0, "capital": 0.0})
    assert [h["step"] for h in history] == [20, 40]
    assert float(np.nextafter(0.0, 1.0)) > 0  # the process has its denormals back


def test_a_kind_with_fewer_right_answers_is_asked_more_often() -> None:
    rng = random.Random(0)
    settings = replace(SMALL, check_every=50)
    kinds = [e.kind for batch in _batches(EXAMPLES, {"color": 0.1, "capital": 1.1}, settings, rng) for e in batch]
    assert len(kinds) == settings.batch * settings.check_every
    assert kinds.count("capital") / len(kinds) == pytest.approx(1.1 / 1.2, abs=0.05)


class Parrot:
    """A model whose answer to a prompt is known: its target, filled up to the longest of the batch."""

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pad_token_id: int, **_: object
    ) -> torch.Tensor:
        known = {tuple(e.prompt_ids): e.target_ids for e in EXAMPLES}
        said = [known[tuple(row[mask.bool()].tolist())] for row, mask in zip(input_ids, attention_mask, strict=True)]
        longest = max(map(len, said))
        out = torch.tensor([ids + [pad_token_id] * (longest - len(ids)) for ids in said])
        return torch.cat([input_ids, out], 1)


def test_answers_end_where_they_end_and_keep_the_order_of_their_prompts() -> None:
    asked = [0, 1, 1, 0] * (AT_ONCE // 3)  # more than one batch, of two lengths of prompt and of answer
    assert len({len(e.prompt_ids) for e in EXAMPLES}) == len({len(e.target_ids) for e in EXAMPLES}) == 2
    answers = sample(Parrot(), [EXAMPLES[i].prompt_ids for i in asked], LAYOUT, temperature=1.0, top_p=1.0)  # type: ignore[arg-type]
    assert answers == [EXAMPLES[i].target_ids for i in asked]


def test_accuracy_counts_groups_that_are_neither_all_right_nor_all_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    color, capital = (e.target_ids for e in EXAMPLES)
    # Of the color's eight answers one is right, of the capital's all are; one that never ends has its words right too.
    spoken = [color, *[capital] * 7, *[capital] * 7, capital[:-1]]
    monkeypatch.setattr("wavalign_ext.pocket.warmstart.sample", lambda *_, **__: spoken)
    lively = np.arange(512) == 3  # the color's codes
    found = accuracy(None, EXAMPLES, LAYOUT, TOKENIZER, group=8, lively=lively)  # type: ignore[arg-type]
    assert found["right"] == pytest.approx(9 / 16, abs=1e-3) and found["answers"] == 16
    assert found["liked"] == pytest.approx(1 / 16, abs=1e-3)
    assert found["mixed_groups_of_4"] == 0.25 and found["mixed_groups_of_8"] == 0.5
    assert found["lively"] == pytest.approx(1 / 16, abs=1e-3)
    assert found["by_kind"] == {"capital": 1.0, "color": 0.125}


def test_noise_touches_only_the_users_speech() -> None:
    prompt = EXAMPLES[0].prompt_ids
    heard = range(LAYOUT.user_speech_start, LAYOUT.user_speech_end)
    noisy = _disturbed(prompt * 200, LAYOUT, 0.5, random.Random(0))
    assert [i for i in noisy if i not in heard] == [i for i in prompt * 200 if i not in heard]
    units = [i for i in noisy if i in heard]
    assert 0.6 < len(units) / 800 < 0.8  # 0.3 are dropped
    assert 0.4 < sum(i != heard[3] for i in units) / len(units) < 0.6  # half of the others are replaced
    assert _disturbed(prompt, LAYOUT, 0.0, random.Random(0)) == prompt
