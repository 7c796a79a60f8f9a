"""Rollouts that people can read and play: one JSON line per rollout, and WAV files for the first few.

A step's dump is ``STEP.jsonl`` beside ``STEP/NUMBER.wav``; the WAV's path stands in the line's field ``wav``.
Validation answers, which are of the same questions every time, also go to TensorBoard: verl's loggers take no audio.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile

from wavalign_ext.config import WavAlignConfig
from wavalign_ext.speech.codecs.base import SpeechCodec
from wavalign_ext.speech.layout import ResolvedLayout


class SampleWriter:
    """Writes dumps of training rollouts and of validation answers in one format.

    ``board`` is a folder of TensorBoard's for validation answers; None writes none. No other writer may use it:
    TensorBoard reads one growing file per folder.
    """

    def __init__(
        self,
        layout: ResolvedLayout,
        codec: SpeechCodec,
        tokenizer: Any,
        config: WavAlignConfig,
        board: str | Path | None = None,
    ) -> None:
        self.layout, self.codec, self.tokenizer = layout, codec, tokenizer
        self.count, self.board = config.audio_dump.max_answers, board

    def write_rollouts(self, folder: str, step: int, keys: list[str], rows: Any) -> None:
        """Dump a training step from the rows that verl's queue holds."""
        lines = []
        for key, fields, scores in zip(
            keys, plain(list(rows["extra_fields"])), rows["rm_scores"].unbind(), strict=True
        ):
            extra = fields["reward_extra_info"]
            lines.append({"key": key, "score": None if extra["missing"] else scores.sum().item(), **extra})
        self._write(Path(folder), step, lines)

    def write_validation(self, folder: str, step: int, columns: dict[str, Any]) -> None:
        """Dump a validation pass from the columns that verl hands to its own dump."""
        extra = dict(columns["reward_extra_infos_dict"])
        lines = []
        for number, (truth, score) in enumerate(zip(columns["gts"], columns["scores"], strict=True)):
            line = {"reference": truth, "score": None if math.isnan(score) else score}
            lines.append(line | {name: values[number] for name, values in extra.items() if name != "reward"})
        self._write(Path(folder), step, lines)
        if self.board:
            _to_board(self.board, step, Path(folder), [line for line in lines if "wav" in line])

    def _write(self, folder: Path, step: int, lines: list[dict[str, Any]]) -> None:
        """Answers to one question stand together, and the same questions come first at every step."""
        lines.sort(key=lambda line: (str(line["question_audio"]), line.get("key", "")))
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{step}.jsonl", "w") as file:
            for number, line in enumerate(lines):
                if number < self.count and line.get("speech_codes"):
                    line |= self._wav(folder, f"{step}/{number}.wav", line["speech_codes"])
                file.write(json.dumps({"step": step, **line}, ensure_ascii=False) + "\n")

    def _wav(self, folder: Path, name: str, codes: str) -> dict[str, str]:
        """Where the audio is, or why there is none: the other answers of the step are worth their dump."""
        (folder / name).parent.mkdir(exist_ok=True)
        try:
            wave = self.codec.decode([int(code) for code in codes.split()])
            soundfile.write(folder / name, wave, self.codec.sample_rate, subtype="PCM_16")
        except Exception as error:
            return {"wav_failed": f"{type(error).__name__}: {error}"}
        return {"wav": name}


def said_if_it_fails(write: Callable[..., None], folder: str, step: int, *rows: Any) -> None:
    """Dump a step; what goes wrong is said at once, and the run goes on: nothing that it learns depends on it."""
    try:
        write(folder, step, *rows)
    except Exception as error:
        print(f"wavalign: the dump of step {step} in {folder} failed: {type(error).__name__}: {error}", flush=True)


def _to_board(board: str | Path, step: int, folder: Path, lines: list[dict[str, Any]]) -> None:
    """An answer's audio and texts under one tag, so that its steps stand side by side."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(board)) as writer:
        for number, line in enumerate(lines):
            wave, rate = soundfile.read(folder / line["wav"], dtype="float32")
            writer.add_audio(f"answer/{number}", wave[None], step, sample_rate=rate)
            score = "missing" if line["score"] is None else f"{line['score']:.2f}"
            told = {"question": line.get("question"), "text": line.get("text"), "heard": line.get("transcript")}
            words = [f"**{name}**: {value}" for name, value in (told | {"reward": score}).items() if value is not None]
            writer.add_text(f"answer/{number}", "  \n".join(words), step)


def plain(column: list[Any]) -> list[Any]:
    """Objects as they were put into the queue, out of tensordict's wrappers."""
    return [getattr(value, "data", value) for value in column]
