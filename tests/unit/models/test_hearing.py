"""The model that hears: transformers' class by itself and against vLLM's, packed and alone, with and without audio."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ask_hearing_vllm import hearing_answers, logps
from ears_world import PLACEHOLDER, build, features
from transformers import AutoModelForCausalLM, AutoTokenizer

from wavalign_ext.models.hearing_qwen2 import HearingQwen2ForCausalLM
from wavalign_ext.models.projectors import PROJECTORS, make_projector


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("ears"))


@pytest.fixture(scope="module")
def tokenizer(world: Path) -> Any:
    return AutoTokenizer.from_pretrained(world / "model")


@pytest.fixture
def model(world: Path) -> HearingQwen2ForCausalLM:
    found = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
    assert isinstance(found, HearingQwen2ForCausalLM)
    return found.eval()


def prompt(tokenizer: Any, *frames: int) -> list[int]:
    """A user's turn with a recording of each number of vectors."""
    said = "".join(f"\n<|begin_of_audio|>{PLACEHOLDER * n}<|end_of_audio|>" for n in frames)
    messages = [{"role": "user", "content": said or "two plus two"}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)


ROWS = [(9,), (4, 12), (), (17,), (5,), (64, 64, 3)]  # vectors per recording
CACHED = 128  # tokens of a block of vLLM's prefix cache on a CPU


def rows(tokenizer: Any) -> list[tuple[list[int], list[torch.Tensor]]]:
    return [
        (prompt(tokenizer, *counts), [features(10 * row + n, count) for n, count in enumerate(counts)])
        for row, counts in enumerate(ROWS)
    ]


def test_vllm_hears_what_transformers_hears(
    world: Path, tokenizer: Any, model: HearingQwen2ForCausalLM, tmp_path: Path
) -> None:
    asked = rows(tokenizer)
    for number, answers in enumerate(hearing_answers(world / "model", asked, tmp_path / "out")):
        for (ids, heard), (said, logp, cached) in zip(asked, answers, strict=True):
            assert said and model.config.audio_token_id not in said
            assert (cached > 0) == (number == 1 and len(ids) > CACHED)
            found = logps(model, ids + said, heard)[-len(said) :]
            assert (found - logp).abs().max() < 1e-5
            if heard:
                other = [features(99, len(one)) for one in heard]
                assert (logps(model, ids + said, other)[-len(said) :] - logp).abs().max() > 0.05


def loss(model: Any, ids: list[torch.Tensor], heard: list[torch.Tensor], packed: bool) -> torch.Tensor:
    """A weighted sum of all logits, so that every gradient has a part in it."""
    audio = torch.cat(heard) if heard else None
    if packed:
        places = torch.cat([torch.arange(len(one)) for one in ids])[None]
        logits = model(
            torch.cat(ids)[None], position_ids=places, attention_mask=None, use_cache=False, audio_features=audio
        ).logits[0]
    else:
        assert len(ids) == 1
        logits = model(ids[0][None], use_cache=False, audio_features=audio).logits[0]
    weight = torch.cat([torch.arange(len(one), dtype=torch.float32).cos() for one in ids])
    return (logits.log_softmax(-1)[:, 7] * weight).sum()


def test_packed_rows_hear_as_each_does_alone(tokenizer: Any, model: HearingQwen2ForCausalLM) -> None:
    made = [(torch.tensor(ids), heard) for ids, heard in rows(tokenizer)]
    alone = [loss(model, [ids], heard, packed=False) for ids, heard in made]
    torch.stack(alone).sum().backward()
    wanted = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    together = loss(model, [ids for ids, _ in made], [one for _, heard in made for one in heard], packed=True)
    together.backward()
    torch.testing.assert_close(together, torch.stack(alone).sum(), rtol=1e-5, atol=1e-4)
    assert {name for name, _ in model.named_parameters()} == wanted.keys()
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        assert (weight.grad - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


def test_without_audio_the_projector_still_has_a_gradient(tokenizer: Any, model: HearingQwen2ForCausalLM) -> None:
    loss(model, [torch.tensor(prompt(tokenizer))], [], packed=False).backward()
    for weight in model.audio_projection.parameters():
        assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize(("placeholders", "frames"), [(3, 4), (4, 3), (2, 0), (0, 2)])
def test_placeholders_and_vectors_are_counted(
    tokenizer: Any, model: HearingQwen2ForCausalLM, placeholders: int, frames: int
) -> None:
    ids = prompt(tokenizer, placeholders) if placeholders else prompt(tokenizer)
    with pytest.raises(ValueError, match=rf"{placeholders} placeholders \(id \d+\) and {frames} vectors"):
        model(torch.tensor([ids]), audio_features=features(0, frames) if frames else None)


def test_generate_hears_the_prompt(tokenizer: Any, model: HearingQwen2ForCausalLM) -> None:
    ids, heard = prompt(tokenizer, 9), features(0, 9)
    options: Any = dict(max_new_tokens=8, do_sample=False, audio_features=heard)
    said = model.generate(torch.tensor([ids]), **options)[0].tolist()
    for length in range(len(ids), len(said)):
        logits = model(torch.tensor([said[:length]]), audio_features=heard).logits[0, -1]
        assert int(logits.argmax()) == said[length]


def test_generate_takes_rows_of_several_lengths(tokenizer: Any, model: HearingQwen2ForCausalLM) -> None:
    """Filled up on the left, as transformers has it, with the mask that says so."""
    long, short, heard = prompt(tokenizer, 9), prompt(tokenizer, 4), [features(0, 9), features(1, 4)]
    missing = len(long) - len(short)
    ids = torch.tensor([long, [model.config.pad_token_id] * missing + short])
    mask = torch.ones_like(ids)
    mask[1, :missing] = 0
    options: Any = dict(max_new_tokens=6, do_sample=False)
    with torch.no_grad():
        model.lm_head.weight[:, 0] = 0  # no token is likelier than others whatever it hears
    both = model.generate(ids, attention_mask=mask, audio_features=torch.cat(heard), **options)
    for row, said in enumerate((long, short)):
        alone = model.generate(torch.tensor([said]), audio_features=heard[row], **options)
        assert both[row, len(long) :].tolist() == alone[0, len(said) :].tolist()
    assert both[0, len(long) :].tolist() != both[1, len(long) :].tolist()


@pytest.mark.parametrize("kind", PROJECTORS)
def test_a_projector_takes_no_vectors_too(kind: str) -> None:
    made = make_projector(kind, 6, 10)
    assert made(torch.zeros(0, 6)).shape == (0, 10) and made(torch.zeros(3, 6)).shape == (3, 10)


def test_an_unknown_projector_is_named() -> None:
    with pytest.raises(ValueError, match="audio_projector='magic' is not known: one of vita, step, linear"):
        make_projector("magic", 6, 10)
