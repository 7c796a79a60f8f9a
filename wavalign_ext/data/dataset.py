"""verl's dataset for spoken dialogues: prompts for the rollout, targets for the anchor.

A target's speech is long, and verl copies a dataset row into each of its n rollouts; so the target stays here and the
trainer asks for it by the row's ``index``, which is its place here: a file's ``extra_info.index`` may be absent, or two
files may have the same ones.
"""

import uuid
from typing import Any

import datasets
from omegaconf import OmegaConf
from verl.utils.dataset.rl_dataset import RLHFDataset

from wavalign_ext.data.pairs.rows import ANSWERS, PAIR_SCORES, Answer, AnswerPair, answer_pair

TARGET_TEXT, TARGET_SPEECH = "target_text", "target_speech"
RECORDINGS = ("target_audio", "rejected_audio")


class SpokenDataset(RLHFDataset):
    """Rows of verl's format plus ``target_text`` (str) and ``target_speech`` (list of codec ids, 0-based).

    Rows of pairs also have ``rejected_text`` and ``rejected_speech``, and may have ``chosen_text``, ``chosen_speech``,
    ``chosen_score`` and ``rejected_score``.
    """

    def __getitem__(self, item: int) -> dict[str, Any]:
        row = super().__getitem__(item)
        for name in (*(f"{answer}_{part}" for answer in ANSWERS for part in ("text", "speech")), *PAIR_SCORES):
            row.pop(name, None)
        row["index"] = int(item)
        return row

    def targets(self) -> list[Answer]:
        """(target text, target codes) of every row, by the row's ``index``."""
        columns = (self.dataframe[TARGET_TEXT], self.dataframe[TARGET_SPEECH])
        return [(text, [] if codes is None else list(codes)) for text, codes in zip(*columns, strict=True)]

    def pair(self, item: int) -> AnswerPair:
        """The two answers of a row. Raises ValueError for a row without."""
        names = [name for name in self.dataframe.column_names if name.startswith(ANSWERS)]
        found = answer_pair(self.dataframe.select_columns(names)[item])
        if found is None:
            raise ValueError(f"row {item} has no pair: give rejected_text and rejected_speech (wavalign pairs)")
        return found


class RawAudioDataset(SpokenDataset):
    """Rows that still hold recordings: they are encoded whenever the file is loaded; ``wavalign prepare`` does it once.

    ``prompt`` has <|audio|> where a recording of the column ``audios`` belongs; ``target_audio`` is the answer's, and
    ``rejected_audio`` that of a pair's worse answer. A
    recording is a path, a file's bytes, or what datasets' Audio holds (bytes, or array and sampling_rate).
    ``data.spoken`` has the layout and the codecs; see :class:`wavalign_ext.data.prepare.raw_rows.RawRows`.
    """

    def maybe_filter_out_long_prompts(self, dataframe: Any = None) -> Any:
        """Encode, then leave out what verl finds too long."""
        columns = [name for name in (self.audio_key, *RECORDINGS) if name in dataframe.column_names]
        if columns:
            rows = raw_rows(self.config, self.tokenizer, self.audio_key)
            dataframe = _undecoded(dataframe, columns).map(
                rows,
                with_indices=True,
                remove_columns=columns,
                desc="recordings to codes",
                # Not into datasets' cache: a recording behind a path may change, and its path stay the same.
                keep_in_memory=True,
                new_fingerprint=uuid.uuid4().hex,
            )
        return super().maybe_filter_out_long_prompts(dataframe)


def raw_rows(config: Any, tokenizer: Any, audio_key: str) -> Any:
    """What turns a row with recordings into one with codes, by verl's ``data`` node."""
    from wavalign_ext.data.prepare.raw_rows import RawRows

    spoken: Any = config.get("spoken")
    settings: Any = OmegaConf.to_container(spoken, resolve=True) if OmegaConf.is_config(spoken) else spoken
    return RawRows(settings, tokenizer, audio_key, config.get("max_response_length"))


def _undecoded(dataframe: Any, columns: list[str]) -> Any:
    """Audio as the file's bytes: decoding is ours, and datasets would want another library for it."""
    raw = datasets.Audio(decode=False)
    for name in columns:
        feature = dataframe.features[name]
        if isinstance(feature, datasets.Audio):
            dataframe = dataframe.cast_column(name, raw)
        elif isinstance(getattr(feature, "feature", None), datasets.Audio):
            dataframe = dataframe.cast_column(name, datasets.List(raw))
    return dataframe
