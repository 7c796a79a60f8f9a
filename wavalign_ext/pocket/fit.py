"""Fitting the two codebooks by k-means, and measuring what the answer codec costs in understood words."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from tqdm import tqdm

from wavalign_ext.pocket import ANSWER_CODES, HEARD_UNITS, SAMPLE_RATE
from wavalign_ext.speech.asr import Recognizer, word_error_rate
from wavalign_ext.speech.codecs.base import SpeechCodec
from wavalign_ext.speech.codecs.fitted import MelVQ, Units, save_codebook

MOST_FRAMES, ROUNDS = 30_000, 15


def fit_units(waves: Sequence[np.ndarray], folder: Path, seed: int, units: int = HEARD_UNITS) -> None:
    """Fit the codebook of the user's speech on ``waves`` and write it."""
    features = torch.cat([Units.features(wave, SAMPLE_RATE) for wave in waves]).numpy()
    centroids, _ = _kmeans(features, units, seed)
    save_codebook(folder, "units", SAMPLE_RATE, {"centroids": torch.from_numpy(centroids)})


def fit_mel_vq(waves: Sequence[np.ndarray], folder: Path, seed: int, codes: int = ANSWER_CODES) -> None:
    """Fit the answer codec; a code's spectrum is the mean log spectrum of the frames that it stands for."""
    spectra = [MelVQ.spectrogram(wave) for wave in waves]
    features = torch.cat([MelVQ.features(spectrum, SAMPLE_RATE) for spectrum in spectra])
    centroids, labels = _kmeans(features.numpy(), codes, seed)
    log_spectra = torch.cat([torch.log(s + 1e-4).reshape(-1, MelVQ.STACK * s.shape[1]) for s in spectra])
    members = torch.from_numpy(labels).long()
    sums = torch.zeros(codes, log_spectra.shape[1]).index_add_(0, members, log_spectra)
    counts = torch.bincount(members, minlength=codes).clamp(min=1)
    tensors = {"centroids": torch.from_numpy(centroids), "spectra": sums / counts[:, None]}
    save_codebook(folder, "mel_vq", SAMPLE_RATE, tensors)


def round_trip_wer(
    codec: SpeechCodec | None, waves: Sequence[np.ndarray], texts: Sequence[str], recognizer: Recognizer
) -> float:
    """Mean word error rate of ``waves`` after encode and decode; of the recordings themselves without a codec."""
    errors = []
    for text, wave in zip(tqdm(texts, "round trip", unit="utt"), waves, strict=True):
        heard = wave if codec is None else codec.decode(codec.encode(wave))
        errors.append(word_error_rate(text, recognizer.transcribe(heard, SAMPLE_RATE)))
    return float(np.mean(errors))


def _kmeans(features: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(centroids, label of every row); fitted on at most ``MOST_FRAMES`` rows."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(features))[:MOST_FRAMES]
    # n_init is an int or "auto"; its annotation is "str".
    model = KMeans(clusters, init="random", n_init=1, max_iter=ROUNDS, random_state=seed)  # type: ignore[arg-type]
    model.fit(features[chosen])
    return model.cluster_centers_.astype(np.float32), np.asarray(model.predict(features))
