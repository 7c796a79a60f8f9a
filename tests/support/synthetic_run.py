"""A run's folder without a job: dumps by the run's own writer, scalars by TensorBoard, a configuration as Hydra's."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile
import torch
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

from wavalign_ext.config import AudioDumpConfig, WavAlignConfig
from wavalign_ext.trainer.rollout_dump import SampleWriter

RATE, CODE_S = 16000, 0.0375
QUESTIONS = ("three plus four", "the capital of kenya", "the opposite of hot", "after monday comes")
ANSWERS = ("three plus four is seven", "the capital of kenya is nairobi", "the opposite of hot is cold", "tuesday")


class Voice:
    """A stand-in for a codec: a code is a frame of coloured noise, which compresses like speech or worse."""

    sample_rate, frame_rate, codebook_size = RATE, 1 / CODE_S, 512

    def encode(self, wave: np.ndarray) -> list[int]:
        raise NotImplementedError

    def decode(self, codes: Any) -> np.ndarray:
        noise = np.random.default_rng(len(codes)).normal(size=(len(codes), int(RATE * CODE_S)))
        tone = np.sin(np.arange(noise.shape[1]) * (0.02 + np.asarray(codes)[:, None] / 2000))
        return (0.2 * tone + 0.05 * noise).reshape(-1).astype(np.float32)


def make_run(folder: Path, steps: int, groups: int = 4, each: int = 4, audio: int = 8, seed: int = 0) -> Path:
    """Write a run of ``steps`` steps, with ``groups`` questions of ``each`` answers; returns its folder."""
    random = np.random.default_rng(seed)
    root = folder / "assets"
    (root / "audio").mkdir(parents=True)
    voice = Voice()
    for name in [f"{kind}{i}" for kind in "qa" for i in range(groups)]:
        soundfile.write(root / f"audio/{name}.flac", voice.decode(random.integers(0, 512, 50)), RATE)
    config = WavAlignConfig(layout="pocket", codec={}, audio_dump=AudioDumpConfig(max_answers=audio))
    writer = SampleWriter(cast(Any, None), voice, None, config)
    for step in range(0, steps + 1):
        if step:
            rows = [_row(random, number // each, step / steps) for number in range(groups * each)]
            keys = [f"u{number // each}_{number % each}_0" for number in range(len(rows))]
            scores = torch.tensor([[row.pop("total")] for row in rows])
            columns = {"extra_fields": [{"reward_extra_info": row} for row in rows], "rm_scores": scores}
            writer.write_rollouts(str(folder / "rollouts"), step, keys, columns)
        if step % 10 == 0:
            rows = [_row(random, number, step / steps) for number in range(groups)]
            info = {name: [row[name] for row in rows] for name in rows[0] if name != "total"}
            columns = {"gts": [ANSWERS[i % 4] for i in range(groups)], "scores": [row["total"] for row in rows]}
            writer.write_validation(str(folder / "validation"), step, columns | {"reward_extra_infos_dict": info})
    _scalars(folder / "tensorboard", steps, 1 + seed / 5, random)
    _hydra(folder / "hydra", root, seed)
    return folder


def _row(random: np.random.Generator, group: int, progress: float) -> dict[str, Any]:
    right = random.random() < 0.3 + 0.6 * progress
    semantic, agreement = (5.0 if right else 2.0), float(random.uniform(3, 5))
    missing = random.random() < 0.05
    codes = random.integers(0, 512, int(random.integers(40, 80)))
    return {
        "question": QUESTIONS[group % 4],
        "question_audio": f"audio/q{group}.flac",
        "answer_audio": f"audio/a{group}.flac",
        "text": ANSWERS[group % 4] if right else f"{QUESTIONS[group % 4]} is nine",
        "transcript": ANSWERS[group % 4],
        "wer": float(random.uniform(0, 0.4)),
        "missing": "asr_agreement: timed out" if missing else "",
        "failed": "speaker: no recording",  # of weight 0
        "exact": float(right),
        "speech_codes": " ".join(map(str, codes)),
        "score_semantic": semantic,
        "score_asr_agreement": None if missing else agreement,
        "total": float("nan") if missing else 0.7 * semantic + 0.3 * agreement,
    }


def _scalars(folder: Path, steps: int, factor: float, random: np.random.Generator) -> None:
    with SummaryWriter(str(folder)) as board:
        for step in range(1, steps + 1):
            t, noise = step / steps, float(random.normal(0, 0.02))
            values = {"lambda": 0.2 + 0.3 * t, "lambda_raw": 0.2 + 0.3 * t + noise, "reward_gate": 0.7 + 0.2 * t}
            values |= {"information_gate": 0.3 - 0.1 * t + noise, "group_best_reward": 4 + t * 0.7}
            values |= {"group_reward_variance": 1.2 - 0.5 * t, "kl_text": 0.02 * t, "kl_speech": 0.004 * t}
            values |= {
                "entropy_text": 0.5 - 0.3 * t,
                "entropy_speech": 0.3 - 0.1 * t,
                "tokens_text": 5.8,
                "logp_text": -1,
            }
            values |= {
                "tokens_speech": 44 + 5 * noise,
                "rewards_missing_share": 0.0,
                "rollouts_truncated": 0.02 * (1 - t),
            }
            values |= {"rollouts_without_text": 0.0, "rollouts_without_speech": 0.0, "groups_degenerate": 0.3 * t}
            for name, value in values.items():
                board.add_scalar(f"wavalign/{name}", value * factor, step)
            board.add_scalar("actor/grad_norm", 0.6 + noise, step)
            if step % 10 == 0:
                board.add_scalar("val-anchor/nll_text", 0.12 + 0.02 * t, step)
                board.add_scalar("val-anchor/nll_speech", 0.02 + 0.01 * t, step)


def _hydra(folder: Path, root: Path, seed: int) -> None:
    folder.mkdir()
    terms = {"semantic": {"weight": 0.7}, "asr_agreement": {"weight": 0.3}}
    mixing = {"type": "adaptive", "lambda_max": 0.8, "ema_decay": 0.9}
    node = {"audio_root": str(root), "reward": {"scale": [1, 5], "terms": terms}, "mixing": mixing}
    OmegaConf.save({"wavalign": node, "data": {"seed": seed, "train_batch_size": 4}}, folder / "config.yaml")
    OmegaConf.save(["+recipe=wavalign", f"data.seed={seed}"], folder / "overrides.yaml")
