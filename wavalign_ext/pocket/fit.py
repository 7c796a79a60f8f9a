"""Fitting the two codebooks by k-means, and the table of manners."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans

from wavalign_ext.pocket import ANSWER_CODES, HEARD_UNITS, SAMPLE_RATE
from wavalign_ext.speech.codecs.fitted import MelVQ, Units, save_codebook

MOST_FRAMES, ROUNDS = 30_000, 15


def fit_units(waves: Sequence[np.ndarray], folder: Path, seed: int, units: int = HEARD_UNITS) -> None:
    """Fit the codebook of the user's speech on ``waves`` and write it."""
    features = torch.cat([Units.features(wave, SAMPLE_RATE) for wave in waves]).numpy()
    centroids, _ = _kmeans(features, units, seed)
    save_codebook(folder, "units", SAMPLE_RATE, {"centroids": torch.from_numpy(centroids)})


def fit_mel_vq(waves: Sequence[np.ndarray], folder: Path, seed: int, codes: int = ANSWER_CODES) -> None:
    """Fit the answer codec on ``waves`` (float32), which are what it decodes from."""
    features = [MelVQ.features(MelVQ.spectrogram(wave), SAMPLE_RATE) for wave in waves]
    centroids, labels = _kmeans(torch.cat(features).numpy(), codes, seed)
    tensors = {
        "centroids": centroids,
        "samples": (np.concatenate(waves) * 32767).astype(np.int16),
        "lengths": np.array([len(wave) for wave in waves]),
        "codes": labels.astype(np.int64),
        "counts": np.array([len(some) for some in features]),
        "edges": torch.cat(features)[:, : MelVQ.MELS].half().numpy(),
    }
    save_codebook(folder, "mel_vq", SAMPLE_RATE, {name: torch.from_numpy(value) for name, value in tensors.items()})


def manner_table(codes: Sequence[tuple[str, Sequence[int]]], one: str, other: str, size: int) -> np.ndarray:
    """(size,) log P(code | one) - log P(code | other) of recordings in manners; half a count is added to each code."""
    counts = {manner: np.full(size, 0.5) for manner in (one, other)}
    for manner, some in codes:
        np.add.at(counts[manner], np.asarray(some, dtype=int), 1)
    return np.log(counts[one] / counts[one].sum()) - np.log(counts[other] / counts[other].sum())


def _kmeans(features: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(centroids, label of every row); fitted on at most ``MOST_FRAMES`` rows."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(features))[:MOST_FRAMES]
    # n_init is an int or "auto"; its annotation is "str".
    model = KMeans(clusters, init="random", n_init=1, max_iter=ROUNDS, random_state=seed)  # type: ignore[arg-type]
    model.fit(features[chosen])
    return model.cluster_centers_.astype(np.float32), np.asarray(model.predict(features))
