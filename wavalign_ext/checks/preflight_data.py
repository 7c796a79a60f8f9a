"""Whether the rows of the data files can be trained on, before Ray starts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wavalign_ext.config import ConfigError, WavAlignConfig
from wavalign_ext.schema import one_line
from wavalign_ext.speech.chat import prompt_ids

RAW_CHECKED = 8  # rows of a file whose recordings are encoded here; a run encodes all of them when it loads the file


def check_data(config: DictConfig, wav: WavAlignConfig, tokenizer: Any) -> dict[str, int]:
    """Check every row of the training and validation files; returns the row count of each file."""
    from wavalign_ext.speech.layout import load_layout

    layout = load_layout(wav.layout).resolve(tokenizer)
    encode = _raw_rows(config, tokenizer)
    counts = {}
    for key in ("train_files", "val_files"):
        for name in as_list(config.data[key]):
            if not Path(name).is_file():
                raise ConfigError(
                    f"data.{key}={name!r} is not a file: give a parquet file (wavalign prepare makes one)"
                )
            counts[name] = 0
            needs_target = wav.uses_anchor or key == "val_files"
            for row in _rows(name):
                if row.get(config.data.get("audio_key", "audios")):
                    if encode is None:
                        raise ConfigError(
                            f"{name}, row {counts[name]} holds recordings: encode them once with wavalign prepare, or "
                            "at every start with data.custom_cls.name=RawAudioDataset"
                        )
                    if counts[name] >= RAW_CHECKED:
                        counts[name] += 1
                        continue
                    row |= encode(row)
                _check_row(row, f"{name}, row {counts[name]}", config, wav, tokenizer, layout, needs_target)
                counts[name] += 1
    return counts


def _check_row(
    row: dict[str, Any],
    where: str,
    config: DictConfig,
    wav: WavAlignConfig,
    tokenizer: Any,
    layout: Any,
    needs_target: bool,
) -> None:
    ids = prompt_ids(tokenizer, row["prompt"], **(config.data.get("apply_chat_template_kwargs") or {}))
    if not any(layout.user_speech_start <= i < layout.user_speech_end for i in ids):
        raise ConfigError(
            f"{where}: the prompt has no audio: no token of the user's speech ({layout.layout.name}) is in it"
        )
    layout.check_prompt(row["prompt"], tokenizer, where)
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
    if not text or codes is None or len(codes) == 0:
        raise ConfigError(
            f"{where}: no anchor target: target_text and target_speech must both be there, unless wavalign.mixing is "
            "fixed at 1"
        )
    target = layout.target(tokenizer.encode(text, add_special_tokens=False), list(codes))
    if len(target) > config.data.max_response_length:
        raise ConfigError(f"{where}: the target has {len(target)} tokens, more than data.max_response_length: raise it")


def _check_wav(path: Path, where: str, name: str) -> None:
    import soundfile

    try:
        frames = soundfile.info(path).frames
    except (soundfile.SoundFileError, OSError) as error:
        raise ConfigError(f"{where}: {name} {str(path)!r} cannot be read: {one_line(str(error))}") from error
    if frames == 0:
        raise ConfigError(f"{where}: {name} {str(path)!r} is empty")


def _raw_rows(config: DictConfig, tokenizer: Any) -> Any:
    """What encodes the recordings of a row, where the data set is one that does; None elsewhere."""
    if OmegaConf.select(config, "data.custom_cls.name") != "RawAudioDataset":
        return None
    from wavalign_ext.data.dataset import raw_rows

    return raw_rows(config.data, tokenizer, config.data.get("audio_key", "audios"))


def _rows(name: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(name).iter_batches():
        yield from batch.to_pylist()


def as_list(value: Any) -> list[str]:
    """A file, or several, as a list."""
    return [value] if isinstance(value, str) else list(value)
