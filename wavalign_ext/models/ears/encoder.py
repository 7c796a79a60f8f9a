"""A small Whisper encoder, taught on spoken questions to spell them (CTC), then frozen: the embedded default's ear.

The letters are only what it is taught by: the model gets the vectors below them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from wavalign_ext.speech.encoders.whisper import CONV_STRIDE, HOP, mel_extractor

LETTERS = " abcdefghijklmnopqrstuvwxyz"
BLANK = 0


@dataclass(frozen=True)
class EarTraining:
    """The encoder's shape, and how it is taught. ``positions`` of 20 ms are heard at once."""

    size: int = 96
    layers: int = 2
    heads: int = 4
    mels: int = 40
    positions: int = 200
    steps: int = 500
    batch: int = 32
    learning_rate: float = 2e-3
    seed: int = 0


def train_encoder(waves: Sequence[np.ndarray], texts: Sequence[str], folder: Path, settings: EarTraining) -> float:
    """Teach an encoder and write it to ``folder`` as a Whisper checkpoint has it; returns the last steps' loss.

    Args:
        waves: mono float32 at 16 kHz.
        texts: what is said, in lower-case letters and spaces.
    """
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(settings.seed)
    config = WhisperConfig(
        d_model=settings.size,
        encoder_layers=settings.layers,
        encoder_attention_heads=settings.heads,
        encoder_ffn_dim=4 * settings.size,
        num_mel_bins=settings.mels,
        max_source_positions=settings.positions,
        dropout=0.0,
    )
    network, head = WhisperEncoder(config), nn.Linear(settings.size, len(LETTERS) + 1)
    loss = _teach(network, head, waves, texts, settings)
    _save(network, config, folder)
    return loss


def _teach(network: nn.Module, head: nn.Module, waves: Any, texts: Any, settings: EarTraining) -> float:
    samples = settings.positions * CONV_STRIDE * HOP
    extract = mel_extractor(settings.mels)
    heard = [extract(w, sampling_rate=16000, max_length=samples, return_tensors="pt").input_features for w in waves]
    mels, lengths = torch.cat(heard), [min(settings.positions, -(-len(w) // (CONV_STRIDE * HOP))) for w in waves]
    spelled = [torch.tensor([LETTERS.index(c) + 1 for c in text]) for text in texts]
    weights = [*network.parameters(), *head.parameters()]
    rate = settings.learning_rate
    optimizer = torch.optim.AdamW([w for w in weights if w.requires_grad], rate, (0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=settings.steps, pct_start=0.15)
    rng, losses = random.Random(settings.seed), []
    for _ in tqdm(range(settings.steps), "encoder", unit="step"):
        chosen = rng.sample(range(len(mels)), settings.batch)
        said = head(network(disturbed(mels[chosen], rng)).last_hidden_state).log_softmax(-1)
        wanted = [spelled[i] for i in chosen]
        loss = nn.functional.ctc_loss(
            said.transpose(0, 1),
            torch.cat(wanted),
            torch.tensor([lengths[i] for i in chosen]),
            torch.tensor([len(w) for w in wanted]),
            blank=BLANK,
            zero_infinity=True,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-20:]))


def disturbed(mels: Tensor, rng: random.Random) -> Tensor:
    """(R, mels, frames) as other voices and rooms would give it: shifted by up to two bands, some lost, some noise."""
    out = mels + 0.05 * torch.randn_like(mels)
    for row in out:
        row.copy_(row.roll(rng.randint(-2, 2), 0))
        band, width = rng.randrange(len(row) - 6), rng.randrange(6)
        row[band : band + width] = 0
        at = rng.randrange(row.shape[1] - 12)
        row[:, at : at + rng.randrange(12)] = 0
    return out


def _save(network: nn.Module, config: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    config.save_pretrained(folder)
    tensors = {f"model.encoder.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
