"""What several optimiser steps a batch do to DPO here: slopes of the batch's start against those of the moment.

    python benchmarks/dpo_staleness.py [--tokens text] [--batches 4] [--mini-batches 4] [--pairs 16]

The trainer finds the size of each pair's advantage once a batch (docs/preference.md). On pocket and its pairs, with the
recipes' optimiser, this trains that way, and at every optimiser step asks for the gradient with fresh sizes as well. It
prints the relative error of the gradient by the optimiser step's place in its batch, the largest change of a margin
since the batch's start, and the held-out margin of a run with stale sizes beside one with fresh ones.
"""

import argparse
import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer
from wavalign_kernels import linear_logprob

from wavalign_ext.config import PairsConfig, PreferenceConfig
from wavalign_ext.data.pairs.rows import answer_pair
from wavalign_ext.method.anchor import supervised_row
from wavalign_ext.method.objectives import Pairs, PairTerms, pair_terms
from wavalign_ext.method.token_weights import ROLLOUT, chosen_tokens, modality_masks
from wavalign_ext.pocket import pocket_dir
from wavalign_ext.speech.layout import load_layout

CONFIG = PairsConfig()
HELD_OUT = 96
Rows = Sequence[dict[str, Any]]  # chosen and rejected of each pair, one after the other


def read(split: str, count: int, layout: Any, words: Any) -> Rows:
    """Rows of the first ``count`` pairs, as the update has them."""
    rows = []
    for row in pandas.read_parquet(pocket_dir() / f"data/pairs_{split}.parquet").to_dict("records")[:count]:
        pair = answer_pair(row)
        assert pair is not None
        prompt = words.apply_chat_template(list(row["prompt"]), add_generation_prompt=True, return_dict=False)
        for text, codes in (pair.chosen, pair.rejected):
            ids = layout.target(words.encode(text, add_special_tokens=False), codes)
            rows.append(supervised_row(prompt, ids, ROLLOUT, layout.modality(ids), layout.drawn(ids)))
    return rows


def log_probs(model: Any, rows: Rows) -> torch.Tensor:
    """log p of each response token, (R, T)."""
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    hidden, head = model.get_decoder()(input_ids=ids).last_hidden_state[:, :-1], model.get_output_embeddings().weight
    logp, _ = linear_logprob(hidden, head, ids[:, 1:], temperature=1.0, entropy=False)
    spans = [(len(row["prompts"]) - 1, len(row["input_ids"]) - 1) for row in rows]
    return pad_sequence([logp[n, start:end] for n, (start, end) in enumerate(spans)], batch_first=True)


class Objective:
    """DPO on ``tokens`` against the weights that the model has now."""

    def __init__(self, model: Any, tokens: Any) -> None:
        self.reference, self.choice = copy.deepcopy(model).requires_grad_(False), PreferenceConfig(tokens=tokens)

    def weights(self, rows: Rows) -> torch.Tensor:
        modality, mask = (
            pad_sequence([row[name] for row in rows], batch_first=True) for name in ("modality", "response_mask")
        )
        return chosen_tokens(self.choice, *modality_masks(modality, mask, "speech"))

    @torch.no_grad()
    def terms(self, model: Any, rows: Rows) -> PairTerms:
        numbers = list(range(len(rows)))
        pairs = Pairs(numbers[::2], numbers[1::2])
        logp, reference = log_probs(model, rows), log_probs(self.reference, rows)
        return pair_terms(pairs, self.weights(rows), logp, reference, "dpo", CONFIG)

    def gradient(self, model: Any, rows: Rows, slope: torch.Tensor) -> torch.Tensor:
        """Of the surrogate, as one vector; left in ``grad`` as well."""
        model.zero_grad()
        scores = (log_probs(model, rows) * self.weights(rows)).sum(-1)
        (-(slope.float() * (scores[::2] - scores[1::2])).mean()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def train(model: Any, batches: Sequence[Sequence[Rows]], objective: Objective, stale: bool) -> dict[int, list[Any]]:
    """Train ``model``; by place in a batch, (relative error of the gradient, largest change of a margin)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01)
    found: dict[int, list[Any]] = defaultdict(list)
    for batch in batches:
        starts = [objective.terms(model, rows) for rows in batch]
        for place, (rows, start) in enumerate(zip(batch, starts, strict=True)):
            now = objective.terms(model, rows)
            fresh = objective.gradient(model, rows, now.slope)
            if stale:
                used = objective.gradient(model, rows, start.slope)
                moved = CONFIG.beta * (now.gap - start.gap).abs().max().item()
                found[place].append((((used - fresh).norm() / fresh.norm()).item(), moved))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", choices=("text", "all"), default="text", help="preferred tokens (default text)")
    for name, count in (("batches", 4), ("mini-batches", 4), ("pairs", 16)):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"default {count}; pairs are of a mini-batch")
    given = parser.parse_args()
    words, model = (kind.from_pretrained(pocket_dir() / "model") for kind in (AutoTokenizer, AutoModelForCausalLM))
    layout, cut = load_layout("pocket").resolve(words, model.config.vocab_size), 2 * given.pairs
    rows = read("train", given.batches * given.mini_batches * given.pairs, layout, words)
    parts = [rows[start : start + cut] for start in range(0, len(rows), cut)]
    batches = [parts[start : start + given.mini_batches] for start in range(0, len(parts), given.mini_batches)]
    held_out, margins = read("val", HELD_OUT, layout, words), {}
    for stale in (True, False):
        policy, objective = copy.deepcopy(model), Objective(model, given.tokens)
        found = train(policy, batches, objective, stale)
        margins[stale] = CONFIG.beta * objective.terms(policy, held_out).gap.mean().item()
        for place, values in found.items():
            errors, moved = zip(*values, strict=True)
            mean, most = sum(errors) / len(errors), max(errors)
            off = f"gradient off by {mean:.4f} on average, {most:.4f} at most"
            print(f"optimiser step {place + 1}: {off}; margins have moved by {max(moved):.3f} at most", flush=True)
    print(f"held-out margin: stale sizes {margins[True]:.4f}, fresh sizes {margins[False]:.4f}")


if __name__ == "__main__":
    main()
