"""The method without verl, in one file: for reading, for debugging, and for people on other frameworks.

    wavalign pocket                            makes model, codec and data; once, minutes
    python examples/plain_loop.py --steps 20

The method's functions are those that run under verl. Left out is what verl adds (processes, devices, a rollout engine,
micro-batches, checkpoints), and speech in the reward.
"""

import argparse
import asyncio
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pandas
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer
from wavalign_kernels import linear_logprob

from wavalign_ext.config import WavAlignConfig
from wavalign_ext.method import advantage, anchor, loss, mixing, token_weights
from wavalign_ext.pocket import pocket_dir
from wavalign_ext.rewards import SpokenAnswer, build_terms
from wavalign_ext.speech.layout import ResolvedLayout, load_layout

WAV = WavAlignConfig(layout="pocket", codec={"type": "mel_vq"})  # the paper's settings
SCALE = WAV.reward.scale
REWARD = build_terms({"graded": {}}, SCALE)
PROMPTS, ANSWERS, MOST_TOKENS = 8, 4, 96
GROUPS = [prompt for prompt in range(PROMPTS) for _ in range(ANSWERS)]  # the prompt of each answer
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # the policy's own distribution


def sample(model: Any, prompts: Sequence[list[int]], layout: ResolvedLayout) -> list[list[int]]:
    """``ANSWERS`` responses for each prompt, prompt after prompt; each with its eos where it has one."""
    ids = pad_sequence(list(map(torch.tensor, prompts)), batch_first=True, padding_value=-1, padding_side="left")
    stop = {"max_new_tokens": MOST_TOKENS, "eos_token_id": list(layout.eos_ids), "pad_token_id": layout.pad_id}
    inputs = {"input_ids": ids.clamp(min=0), "attention_mask": (ids >= 0).long(), "num_return_sequences": ANSWERS}
    answers = model.generate(**inputs, **SAMPLING, **stop)[:, ids.shape[1] :].tolist()
    return [row[: 1 + next((n for n, i in enumerate(row) if i in layout.eos_ids), len(row))] for row in answers]


async def score(ids: list[int], row: dict, layout: ResolvedLayout, words: Any) -> float:
    """The reward of one answer; NaN where a term failed."""
    split, silent = layout.split(ids), {"wave": None, "sample_rate": 16000, "speech_codes": ()}
    graded = tuple((one["text"], one["score"]) for one in row["extra_info"]["graded"])
    told = {"text": words.decode(split.text_ids), "reference_text": row["target_text"], "graded": graded, **silent}
    total = (await REWARD(SpokenAnswer(ended=split.ended, truncated=not split.ended, **told))).total
    return float("nan") if total is None else total


def make_rows(prompts: Any, answers: Any, rewards: list[float], targets: Any, layout: ResolvedLayout) -> list[dict]:
    """Rows of one update: every rollout with its advantage, then each prompt's target."""
    kinds = [token_weights.ROLLOUT] * len(answers) + [token_weights.ANCHOR] * len(targets)
    triples = zip([*(prompts[number] for number in GROUPS), *prompts], [*answers, *targets], kinds, strict=True)
    rows = [anchor.supervised_row(prompt, ids, kind, layout.modality(ids)) for prompt, ids, kind in triples]
    gains = advantage.group_advantages(torch.tensor(rewards), GROUPS, WAV.preference.advantage)
    for row, reward, gain in zip(rows, rewards, gains, strict=False):  # the answers, which come first
        row |= {"advantages": gain.repeat(len(row["responses"])), "scored": reward == reward}  # False for NaN
    return rows


def log_probs(model: Any, rows: Sequence[dict]) -> torch.Tensor:
    """log p of each response token, (R, T); a causal model does not see the padding behind a row."""
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    hidden, head = model.get_decoder()(input_ids=ids).last_hidden_state[:, :-1], model.get_output_embeddings().weight
    logp, _ = linear_logprob(hidden, head, ids[:, 1:], temperature=SAMPLING["temperature"], entropy=False)
    spans = [(len(row["prompts"]) - 1, len(row["input_ids"]) - 1) for row in rows]
    return pad_sequence([logp[n, start:end] for n, (start, end) in enumerate(spans)], batch_first=True)


def loss_of(model: Any, reference: Any, rows: Sequence[dict], lam: float) -> loss.LossOutputs:
    """λ · preference + (1 − λ) · anchor of the rows, whose answers ``model`` itself has sampled: ρ = 1."""
    names = ("modality", "response_mask", "advantages")
    modality, mask, advantages = (pad_sequence([row[name] for row in rows], batch_first=True) for name in names)
    kind, scored = (torch.tensor([row.get(name, True) for row in rows]) for name in ("row_kind", "scored"))
    choice = {"preference": WAV.preference, "anchor": WAV.anchor, "boundary_modality": WAV.boundary_modality}
    w = token_weights.token_weights(modality, mask, kind, scored, aggregation="token-mean", **choice)
    weights = (w.preference, w.anchor, w.text, w.speech, (kind == token_weights.ANCHOR)[:, None])
    inputs = loss.LossInputs(log_probs(model, rows), None, advantages, *weights, log_probs(reference, rows))
    return loss.combined_loss(inputs, lam, loss.LossCoefficients(kl_text=WAV.kl.text, kl_speech=WAV.kl.speech))


def train(model: Any, data: Sequence[dict], layout: ResolvedLayout, words: Any, steps: int) -> Iterator[str]:
    """One line for each step. ``data`` has rows as in docs/data.md; ``words`` is the tokenizer."""
    reference, controller = copy.deepcopy(model).requires_grad_(False), mixing.MixingController(WAV.mixing, SCALE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(steps):
        asked = [data[(PROMPTS * step + number) % len(data)] for number in range(PROMPTS)]
        told = {"add_generation_prompt": True, "return_dict": False}
        prompts = [words.apply_chat_template(list(row["prompt"]), **told) for row in asked]
        texts = [words.encode(row["target_text"], add_special_tokens=False) for row in asked]
        targets = [layout.target(text, row["target_speech"]) for text, row in zip(texts, asked, strict=True)]
        answers = sample(model, prompts, layout)
        of = [asked[prompt] for prompt in GROUPS]
        rewards = [asyncio.run(score(*pair, layout, words)) for pair in zip(answers, of, strict=True)]
        lam = controller.update(rewards, GROUPS)
        outputs = loss_of(model, reference, make_rows(prompts, answers, rewards, targets, layout), lam)
        optimizer.zero_grad()
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        reward, parts = sum(rewards) / len(rewards), outputs.parts
        yield f"step {step + 1}: reward {reward:.2f}, λ {lam:.3f}, anchor NLL {parts['anchor_nll']:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the pocket model by the method, without verl.")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (default 20)")
    steps, folder = parser.parse_args().steps, pocket_dir()
    if not (folder / "report.json").is_file():  # written last
        parser.error("the pocket assets are not built: run `wavalign pocket` first")
    torch.manual_seed(1)
    words, model = (kind.from_pretrained(folder / "model") for kind in (AutoTokenizer, AutoModelForCausalLM))
    data = pandas.read_parquet(folder / "data/train.parquet").sample(frac=1, random_state=1).to_dict("records")
    layout = load_layout("pocket").resolve(words, model.config.vocab_size)
    for line in train(model, data, layout, words, steps):
        print(line, flush=True)
