"""The loop without verl: it trains, it needs no framework, and its gradients are those of the trainer's loss."""

# TensorDict annotates more narrowly than it behaves.
# pyright: reportArgumentType=false

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import small_world
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from wavalign_ext.config import AnchorConfig, KLConfig, PreferenceConfig
from wavalign_ext.method.anchor import rows_to_tensordict
from wavalign_ext.method.loss import LossCoefficients
from wavalign_ext.method.token_weights import ROW_FIELDS, token_weights
from wavalign_ext.speech.layout import ResolvedLayout, load_layout

SCRIPT = Path(__file__).parents[2] / "examples/plain_loop.py"


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_loop", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ResolvedLayout, list[dict]]:
    """A tokenizer, its layout, and rows of data."""
    world = small_world.build(tmp_path_factory.mktemp("world"))
    words = AutoTokenizer.from_pretrained(world.folder / "model")
    layout = load_layout(world.layout).resolve(words)
    data = []
    for number, text in enumerate(("one plus two is three", "you are kind", "ten")):
        prompt = layout.user_speech_prompt([number, 3, 5 + number])
        target = {"target_text": text, "target_speech": [number + 1] * (6 + 3 * number)}
        target["extra_info"] = {"graded": [{"text": text, "score": 5.0}]}
        data.append({"prompt": [{"role": "user", "content": prompt}], **target})
    return words, layout, data


def tiny_model(vocabulary: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=vocabulary, num_key_value_heads=1, bos_token_id=None, eos_token_id=None, **sizes)
    config.initializer_range = 0.3
    return Qwen2ForCausalLM(config).double()


def some_rows(loop: ModuleType, parts: Any, model: Any, rewards: list[float]) -> list[dict]:
    words, layout, data = parts
    asked = [data[number % len(data)] for number in range(loop.PROMPTS)]
    prompts = [words.apply_chat_template(row["prompt"], return_dict=False) for row in asked]
    targets = [layout.target(words.encode(row["target_text"]), row["target_speech"]) for row in asked]
    answers = loop.sample(model, prompts, layout)
    assert len(answers) == len(rewards) and len({len(ids) for ids in answers}) > 1
    return loop.make_rows(prompts, answers, rewards, targets, layout)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    return found


def by_the_trainer(model: Any, reference: Any, rows: list[dict], lam: float, loop: ModuleType) -> tuple[float, dict]:
    """(loss, gradients) by verl's worker's loss in one pass: rows unpadded, each by itself through the model."""
    from verl.utils import tensordict_utils as tu
    from wavalign_kernels import LossInputs, linear_logprob, wavalign_loss

    from wavalign_ext.integration.fused_head import response_positions
    from wavalign_ext.integration.verl_loss import VerlLoss

    pad = lambda name: pad_sequence([row[name] for row in rows], batch_first=True)  # noqa: E731
    weights = token_weights(
        pad("modality"),
        pad("response_mask"),
        torch.stack([row["row_kind"] for row in rows]),
        torch.tensor([row.get("scored", True) for row in rows]),
        preference=PreferenceConfig(),
        anchor=AnchorConfig(),
        boundary_modality="speech",
        aggregation="token-mean",
    )
    streams = dict(zip(ROW_FIELDS, (weights.preference, weights.anchor, weights.text, weights.speech), strict=True))
    head = reference.lm_head.weight
    made = []
    for number, row in enumerate(rows):
        size, ids = len(row["responses"]), row["input_ids"]
        with torch.no_grad():
            hidden = reference.model(input_ids=ids[None]).last_hidden_state[0]
            before, _ = linear_logprob(hidden, head, torch.roll(ids, -1), entropy=False)
        kept = {name: row[name] for name in ("prompts", "responses", "input_ids", "row_kind", "temperature")}
        kept |= {name: stream[number, :size].double() for name, stream in streams.items()}
        kept |= {"advantages": row["advantages"].double(), "ref_log_prob": before[-size - 1 : -1]}
        made.append(kept)
    data = rows_to_tensordict(made)
    for name, value in {"wavalign_lambda": lam, "dp_size": 1}.items():
        tu.assign_non_tensor_data(data, name, value)
    kl = loop.WAV.kl
    loss = VerlLoss(LossCoefficients(kl_text=kl.text, kl_speech=kl.speech))
    asked, positions = loss.head_loss(data), response_positions(data)
    assert asked is not None
    hidden = torch.cat([model.model(input_ids=row["input_ids"][None]).last_hidden_state[0] for row in rows])
    place = lambda v: v.new_zeros(len(hidden)).index_copy_(0, positions, v)  # noqa: E731
    columns = {name: place(v) if isinstance(v, torch.Tensor) and v.dim() else v for name, v in asked.items()}
    targets = torch.roll(data["input_ids"].values(), -1)
    result = wavalign_loss(hidden, model.lm_head.weight, LossInputs(targets=targets, temperature=1.0, **columns))
    result.loss.backward()
    return result.loss.item(), gradients(model)


@pytest.mark.parametrize("lam", [0.0, 0.37, 1.0])
def test_its_gradients_are_those_of_the_trainer_s_loss(
    loop: ModuleType, parts: Any, lam: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The paper's two coefficients are one number, which would hide that they are mixed up.
    monkeypatch.setattr(loop, "WAV", loop.WAV.model_copy(update={"kl": KLConfig(text=0.05, speech=0.3)}))
    model, reference = tiny_model(len(parts[0])), tiny_model(len(parts[0]), seed=1).requires_grad_(False)
    rewards = [1.0 + (7 * number % 5) for number in range(len(loop.GROUPS))]
    rewards[3] = float("nan")
    rows = some_rows(loop, parts, model, rewards)
    outputs = loop.loss_of(model, reference, rows, lam)
    outputs.loss.backward()
    own = gradients(model)
    loss, theirs = by_the_trainer(model, reference, rows, lam, loop)
    assert outputs.loss.item() == pytest.approx(loss, rel=1e-12)
    for name, gradient in theirs.items():
        assert gradient.norm() > 0, name
        assert (own[name] - gradient).norm() <= 1e-12 * gradient.norm(), name


def test_two_steps_train(loop: ModuleType, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words, layout, data = parts
    monkeypatch.setattr(loop, "MOST_TOKENS", 12)
    model = tiny_model(len(words))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    lines = list(loop.train(model, data, layout, words, steps=2))
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(rf"step {number}: reward [1-5]\.\d\d, λ 0\.\d{{3}}, anchor NLL \d+\.\d{{3}}", line), line
    assert all((weight != before[name]).any() for name, weight in model.named_parameters())


def test_an_answer_ends_with_its_first_eos(loop: ModuleType, parts: Any) -> None:
    words, layout, _ = parts
    answers = loop.sample(tiny_model(len(words)), [[3, 4], [5, 6, 7]] * 4, layout)
    eos = layout.eos_ids[0]
    assert len(answers) == len(loop.GROUPS) and any(eos in ids for ids in answers)
    for ids in answers:
        assert ids.index(eos) == len(ids) - 1 if eos in ids else len(ids) == loop.MOST_TOKENS


def test_it_is_short_and_imports_no_framework() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 120
    code = f"""
import runpy, sys
runpy.run_path({str(SCRIPT)!r})
print(*({{"verl", "ray", "vllm", "torch"}} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["torch"]


@pytest.mark.parametrize(
    ("words", "status", "told"), [(["--help"], 0, "--steps"), ([], 2, "run `wavalign pocket` first")]
)
def test_it_has_help_and_says_what_is_missing(
    words: list[str], status: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    monkeypatch.setenv("WAVALIGN_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr()
    assert ended.value.code == status and told in said.out + said.err
