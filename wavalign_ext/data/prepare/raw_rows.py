"""Rows of parquet that still hold recordings, encoded when they are loaded."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wavalign_ext.data.prepare.audio import Limits, clean
from wavalign_ext.data.prepare.dialogue import parse
from wavalign_ext.data.prepare.hear import FOLDER, Ears, load_coder
from wavalign_ext.data.prepare.messages import Clip, SampleError
from wavalign_ext.data.prepare.rows import RowMaker
from wavalign_ext.data.prepare.setup import assemble
from wavalign_ext.data.prepare.sources import locate
from wavalign_ext.schema import one_line
from wavalign_ext.speech.audio import decode
from wavalign_ext.speech.codecs.base import SpeechCodec
from wavalign_ext.speech.heard import HEARD_FEATURES
from wavalign_ext.speech.layout import load_layout

SETTINGS = ("layout", "codec", "input_codec", "encoder", "audio_root")
TARGET_AUDIO, REJECTED_AUDIO = "target_audio", "rejected_audio"


class RawRows:
    """Turns ``prompt`` with <|audio|> and ``audios``, ``target_text`` and ``target_audio`` into what is trained on.

    Args:
        settings: ``layout``, ``codec``, ``input_codec`` (null: the same), ``audio_root``, as under ``wavalign``;
            ``encoder`` where the layout has one: what it hears is kept in ``features`` of ``audio_root``.
        tokenizer: of the model.
        audio_key: the column of the user's recordings.
        longest_target: in tokens; None allows any. verl itself sees to the prompts.

    Raises:
        ValueError: a setting is missing or not known, or they do not belong together.
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | None,
        tokenizer: Any,
        audio_key: str = "audios",
        longest_target: int | None = None,
    ) -> None:
        given = {name: value for name, value in (settings or {}).items() if value is not None}
        wrong = [name for name in given if name not in SETTINGS] + [n for n in ("layout", "codec") if n not in given]
        if wrong:
            remedy = "+data.spoken='{layout: ${wavalign.layout}, codec: ${wavalign.codec}}'"
            raise ValueError(f"data.spoken={dict(given)}: {wrong[0]!r} is missing or not known: set {remedy}")
        layout, others = load_layout(given["layout"]), (given.get("input_codec"), given.get("encoder"))
        self.setup = assemble(layout, tokenizer, given["codec"], *others)
        self.root, self.audio_key = Path(given.get("audio_root") or "."), audio_key
        self._maker, self._limits = RowMaker(self.setup, longest_target=longest_target), Limits()
        self._codecs: dict[str, SpeechCodec | Ears] = {}
        self._columns = ("prompt", "target_text", "target_speech") + (HEARD_FEATURES,) * (layout.encoder is not None)

    def __call__(self, row: Mapping[str, Any], number: int | None = None) -> dict[str, Any]:
        """``prompt``, ``target_text`` and ``target_speech`` of a row; one without recordings stays as it is.

        With the column ``rejected_audio`` also ``rejected_text`` and ``rejected_speech``.

        Args:
            number: of the row, from 0, for the message.

        Raises:
            ValueError: the row, the field and what is wrong with it.
        """
        columns = self._columns + ("rejected_text", "rejected_speech") * (REJECTED_AUDIO in row)
        if not row.get(self.audio_key):
            return {name: row.get(name) for name in columns}
        try:
            values = self._made(row)
        except Exception as error:  # whatever it is, its row is named
            why = str(error) if isinstance(error, SampleError) else f"{type(error).__name__}: {one_line(str(error))}"
            info = row.get("extra_info")
            index = info.get("index") if isinstance(info, Mapping) else None
            where = "the row" if number is None else f"row {number}"
            raise ValueError(f"{where} with extra_info.index={index}, {why}") from error
        return {name: values[name] for name in columns}

    def _made(self, row: Mapping[str, Any]) -> dict[str, Any]:
        ready = row.get("target_speech")
        target = row.get(TARGET_AUDIO) if ready is None else "target_speech"
        record = {"messages": row["prompt"], "audios": list(row[self.audio_key])}
        record |= {name: row.get(name) for name in ("target_text", "rejected_text", REJECTED_AUDIO)}
        sample = parse(record | {TARGET_AUDIO: target}, speaks=self.setup.layout.speaks)
        given = {} if ready is None or not sample.target else {sample.target[0].name: np.array(ready)}
        encoded = {clip.name: self._encode(clip) for clip in sample.clips if clip.name not in given}
        made = self._maker(sample, given | {name: codes for name, (codes, _) in encoded.items()})
        heard = [encoded[clip.name][1] for clip in sample.heard]
        worse, speech = made.rejected or (None, None)
        return {**vars(made), HEARD_FEATURES: heard, "rejected_text": worse, "rejected_speech": speech}

    def _encode(self, clip: Clip) -> tuple[np.ndarray, str | None]:
        """Codes (C,), and the file of what an encoder heard."""
        if clip.role not in self._codecs:
            self._codecs[clip.role] = load_coder(self.setup.specs[clip.role])
        codec = self._codecs[clip.role]
        try:
            found = locate(clip.source, self.root)
            data = found if isinstance(found, bytes) else Path(found).read_bytes()
            wave = clean(*decode(data, self._limits.longest_s), codec.sample_rate, self._limits)
            codes, name = codec.encode(wave), None
            if isinstance(codec, Ears):
                key = hashlib.sha256(codec.fingerprint().encode() + wave.tobytes()).hexdigest()
                name = f"{FOLDER}/{key[:2]}/{key}.safetensors"
                codec.save(self.root / name)
        except Exception as error:
            shown = clip.source if isinstance(clip.source, str) else type(clip.source).__name__
            raise SampleError(clip.name, shown, one_line(str(error))) from error
        return np.array(codes), name
