"""What the held-out answers of a run are worth: one row per answer, one row per run.

The answers are the run's own validation dump; speech is decoded from its codes and judged by models that no reward
used: Whisper tiny.en, Distill-MOS, Resemblyzer.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from evidence.plan import Run, read_metrics
from tqdm import tqdm

from wavalign_ext.pocket import SAMPLE_RATE, pocket_dir
from wavalign_ext.rewards import SpokenAnswer, TermFailed, build_terms
from wavalign_ext.speech.asr import load_recognizer, word_error_rate
from wavalign_ext.speech.audio import load_audio
from wavalign_ext.speech.codecs import load_codec

# name: (what it is, "up" or "down" for better); the order of the tables.
MEASURES = {
    "exact": ("text exactly right", "up"),
    "wer_own": ("Whisper WER of the speech against its own text", "down"),
    "wer_reference": ("Whisper WER of the speech against the right answer", "down"),
    "mos": ("Distill-MOS of the speech, 1 to 5", "up"),
    "likeness": ("speaker likeness to the anchor's recording", "up"),
    "layout_errors": ("answers that break the schedule", "down"),
    "truncated": ("answers cut off by the length limit", "down"),
}
RUN_MEASURES = {
    "nll_text": ("NLL per text token of held-out targets", "down"),
    "nll_speech": ("NLL per speech token of held-out targets", "down"),
}
SCALE = (1.0, 5.0)


class Judges:
    """The models that judge the speech, loaded once."""

    def __init__(self) -> None:
        self.codec = load_codec({"type": "mel_vq", "path": pocket_dir() / "codec"})
        self.whisper = load_recognizer({"type": "whisper", "threads": 1})
        self.voice = build_terms({"speech_quality": {"weight": 1}, "speaker": {"weight": 1}}, SCALE)

    async def judge(self, row: dict[str, Any], reference_audio: Path) -> dict[str, float | None]:
        """The measures of one answer of a dump; a measure that failed is None."""
        codes = [int(code) for code in row["speech_codes"].split()]
        wave = self.codec.decode(codes) if codes else None
        heard = "" if wave is None else self.whisper.transcribe(wave, SAMPLE_RATE)
        answer = SpokenAnswer(
            text=row["text"],
            speech_codes=tuple(codes),
            wave=wave,
            sample_rate=SAMPLE_RATE,
            question_text=row["question"],
            question_wave=None,
            question_rate=SAMPLE_RATE,
            reference_text=row["reference"],
            reference_wave=load_audio(reference_audio, SAMPLE_RATE),
            ended=True,
            truncated=False,
        )
        for term in self.voice.terms.values():
            try:
                await term.score(answer)
            except TermFailed:
                pass
        known = {name: answer.notes.get(name) for name in ("mos", "likeness")}
        return {
            "exact": row["exact"],
            "wer_own": word_error_rate(row["text"], heard),
            "wer_reference": word_error_rate(row["reference"], heard),
            **{name: None if value is None else float(value) for name, value in known.items()},
            "layout_errors": float(row["layout_errors"] > 0),
            "truncated": row["truncated"],
        }


async def answers(run: Run, folder: Path, step: int, judges: Judges, questions: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per held-out answer after ``step``; ``questions`` is :func:`read_questions`. Kept in the run's folder."""
    kept = folder / f"answers_{step}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    dump = (folder / "validation" / f"{step}.jsonl").read_text().splitlines()
    rows = []
    for row in tqdm(list(map(json.loads, dump)), f"judging {run.name}", unit="answer", leave=False):
        question = questions[row["question_audio"]]
        found = await judges.judge(row, pocket_dir() / question["answer_audio"])
        rows.append({**_who(run, step), **{k: question[k] for k in ("kind", "voices", "question_audio")}, **found})
    kept.write_text(json.dumps(rows))
    return rows


def summary(run: Run, folder: Path, step: int, steps: int, failure: str) -> dict[str, Any]:
    """One row per run: what training itself logged."""
    row = {**_who(run, step), "failure": failure}
    if failure:
        return row
    metrics = read_metrics(folder)
    rewards = [metrics[s]["critic/score/mean"] for s in sorted(metrics) if "critic/score/mean" in metrics[s]]
    few = max(1, steps // 6)
    for name in RUN_MEASURES:
        row[name] = metrics[step][f"val-anchor/{name}"]
    row |= {"reward_first": float(np.mean(rewards[:few])), "reward_last": float(np.mean(rewards[-few:]))}
    seconds = [m["timing_s/step"] for m in metrics.values() if "timing_s/step" in m]
    return row | {"seconds_per_step": float(np.median(seconds))}


def curves(run: Run, folder: Path) -> list[dict[str, Any]]:
    """One row per training step: reward, λ and its gates, KL and entropy by modality."""
    wanted = ["critic/score/mean", "wavalign/lambda", "wavalign/lambda_raw", "wavalign/reward_gate"]
    wanted += ["wavalign/information_gate", "wavalign/group_reward_variance", "wavalign/groups_degenerate"]
    wanted += [f"wavalign/{name}_{modality}" for name in ("kl", "entropy") for modality in ("text", "speech")]
    found = read_metrics(folder)
    return [
        {
            **_who(run, step),
            **{name.split("/")[-1] if "score" not in name else "reward": m.get(name) for name in wanted},
        }
        for step, m in sorted(found.items())
        if "critic/score/mean" in m
    ]


def read_questions(val_files: list[Path]) -> dict[str, Any]:
    """What is known of each held-out question, by its audio file."""
    import pandas

    found = {}
    for file in val_files:
        for info in pandas.read_parquet(file)["extra_info"]:
            voices = "new voices, new phrasing" if info["new_phrasing"] else "new voices"
            found[info["question_audio"]] = {**info, "voices": voices if info["new_voice"] else "trained voices"}
    return found


def _who(run: Run, step: int) -> dict[str, Any]:
    return {"recipe": run.recipe if step else "start", "seed": run.seed, "noise": run.noise, "step": step}
