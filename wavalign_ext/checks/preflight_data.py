"""Whether the rows of the data files can be trained on, before Ray starts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wavalign_ext.checks.preflight_heard import HeardRows
from wavalign_ext.checks.preflight_pairs import check_pair
from wavalign_ext.config import ConfigError, WavAlignConfig
from wavalign_ext.schema import one_line, shown
from wavalign_ext.speech.audio import load_audio
from wavalign_ext.speech.chat import prompt_ids
from wavalign_ext.verl_keys import OFFLINE

RAW_CHECKED = 8  # rows of a file whose recordings are encoded here; a run encodes all of them when it loads the file


def check_data(config: DictConfig, wav: WavAlignConfig, tokenizer: Any) -> dict[str, int]:
    """Check every row of the training and validation files; returns the row count of each file.

    Raises:
        ConfigError: the file, the row and what is wrong with it; or too few rows for one step.
    """
    from wavalign_ext.speech.layout import load_layout

    layout = load_layout(wav.layout).resolve(tokenizer)
    encode, heard = _raw_rows(config, tokenizer), HeardRows(layout, wav.audio_root)
    counts = {}
    for key in ("train_files", "val_files"):
        names = as_list(config.data[key])
        for name in names:
            if not Path(name).is_file():
                raise ConfigError(
                    f"data.{key}={name!r} is not a file: give a parquet file (wavalign prepare makes one)"
                )
            needs_target = wav.uses_anchor or key == "val_files"
            counts[name] = 0
            for row in _rows(name):
                where = f"{name}, row {counts[name]}"
                try:
                    if _encoded(row, where, config, encode, counts[name]):
                        _check_row(row, where, config, wav, tokenizer, layout, heard, needs_target)
                        if OmegaConf.select(config, "trainer.v1.trainer_mode") == OFFLINE:
                            check_pair(row, where, config, wav, tokenizer, layout)
                except ConfigError:
                    raise
                except Exception as error:  # whatever it is, its file and row are named
                    why = one_line(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
                    raise ConfigError(f"{where}: {why}") from error
                counts[name] += 1
        step = config.data.get("train_batch_size") if key == "train_files" else None
        found, wanted = sum(counts[name] for name in names), step or 1
        if found < wanted:
            why = f"fewer than data.train_batch_size={wanted}: give more, or lower it" if step else "one is needed"
            raise ConfigError(f"data.{key}={', '.join(names)} holds {found} rows: {why}")
    return counts


def _encoded(row: dict[str, Any], where: str, config: DictConfig, encode: Any, number: int) -> bool:
    """Replace a row's recordings by codes; False for a row whose recordings are not looked at here."""
    if not row.get(config.data.get("audio_key", "audios")):
        return True
    if encode is None:
        raise ConfigError(
            f"{where} holds recordings: encode them once with wavalign prepare, or at every start with "
            "data.custom_cls.name=RawAudioDataset"
        )
    if number < RAW_CHECKED:
        row |= encode(row)
    return number < RAW_CHECKED


def _check_row(
    row: dict[str, Any],
    where: str,
    config: DictConfig,
    wav: WavAlignConfig,
    tokenizer: Any,
    layout: Any,
    heard: HeardRows,
    needs_target: bool,
) -> None:
    prompt, truth = row.get("prompt"), (row.get("reward_model") or {}).get("ground_truth")
    if not isinstance(prompt, list) or not prompt:
        raise ConfigError(f"{where}: prompt={shown(prompt)} is no list of messages: wavalign prepare makes such rows")
    if not isinstance(truth, str) or not truth.strip():
        raise ConfigError(
            f"{where}: reward_model.ground_truth={shown(truth)} is no text: rewards compare answers with it"
        )
    ids = prompt_ids(tokenizer, prompt, **(config.data.get("apply_chat_template_kwargs") or {}))
    if not any(layout.user_speech_start <= i < layout.user_speech_end for i in ids):
        raise ConfigError(
            f"{where}: the prompt has no audio: no token of the user's speech ({layout.layout.name}) is in it"
        )
    layout.check_prompt(prompt, tokenizer, where)
    heard(row, ids, where)
    ids = layout.prompt(ids)
    if len(ids) > config.data.max_prompt_length:
        raise ConfigError(f"{where}: the prompt has {len(ids)} tokens, more than data.max_prompt_length: raise it")
    info = row.get("extra_info") or {}
    for name in ("question_audio", "answer_audio"):
        if info.get(name):
            _check_wav(Path(wav.audio_root or ".") / info[name], where, name)
    if not needs_target:
        return
    text, codes = row.get("target_text"), row.get("target_speech")
    codes = [] if codes is None else list(codes)
    if not text or (layout.speaks and not codes):
        needed = "target_text and target_speech must both" if layout.speaks else "target_text must"
        raise ConfigError(f"{where}: no anchor target: {needed} be there, unless wavalign.mixing is fixed at 1")
    target = layout.target(tokenizer.encode(text, add_special_tokens=False), codes)
    if len(target) > config.data.max_response_length:
        raise ConfigError(f"{where}: the target has {len(target)} tokens, more than data.max_response_length: raise it")


def _check_wav(path: Path, where: str, name: str) -> None:
    """By the header where that is the whole truth; elsewhere the recording is decoded, as the rewards will."""
    import soundfile

    try:
        info = soundfile.info(path)
        header = info.format in ("WAV", "FLAC") and info.subtype.startswith("PCM_") and 0 < info.frames < 2**62
    except (soundfile.SoundFileError, OSError, ValueError, TypeError):
        header = False
    if header:
        return
    try:
        load_audio(path, 16000)
    except ValueError as error:
        raise ConfigError(f"{where}: {name}: {one_line(str(error))}") from error


def _raw_rows(config: DictConfig, tokenizer: Any) -> Any:
    """What encodes the recordings of a row, where the data set is one that does; None elsewhere."""
    if OmegaConf.select(config, "data.custom_cls.name") != "RawAudioDataset":
        return None
    from wavalign_ext.data.dataset import raw_rows

    return raw_rows(config.data, tokenizer, config.data.get("audio_key", "audios"))


def _rows(name: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(name).iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{name!r} is no whole parquet file ({one_line(str(error))}): make it again") from error


def as_list(value: Any) -> list[str]:
    """A file, or several, as a list."""
    return [value] if isinstance(value, str) else list(value)
