"""What is checked, built and printed before Ray starts: a Hydra callback that the recipes install.

A bad value ends the run here with one line that names it; Hydra only warns about a callback's ordinary exceptions, so
the line leaves as a :class:`SystemExit`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from wavalign_ext import run
from wavalign_ext.config import ConfigError, WavAlignConfig

# A model's vocabulary is rounded up for speed, to a multiple of 64 or more, or of 8 as VITA-Audio's; a larger surplus
# means that tokens are missing from the tokenizer.
ROUNDINGS = {8: 8, 64: 1024}  # multiple: most surplus rows
RAW_CHECKED = 8  # rows of a file whose recordings are encoded here; a run encodes all of them when it loads the file


class Preflight(Callback):
    """``hydra.callbacks.wavalign`` of every WavAlign recipe."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Before Hydra copies the configuration for verl, and writes it over that of a run that has ended."""
        run.begin(config)
        _stop_if_finished(config)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Check ``config`` whole. Ends the process with one line on the first thing that cannot work."""
        try:
            wav = check_config(config)
            _build_pocket(config)
            tokenizer = check_model(config, wav)
            rows = check_data(config, wav, tokenizer)
        except (ConfigError, ValueError, OSError, ImportError) as error:
            raise SystemExit(f"wavalign: {_one_line(error)}") from error
        print(_summary(config, wav, rows), flush=True)

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """Say where the results are."""
        folder = config.trainer.default_local_dir
        print(f"wavalign: results in {folder}: rollouts/ and validation/ (text, scores, WAV), tensorboard/", flush=True)


def _stop_if_finished(config: DictConfig) -> None:
    """End well, before Ray starts, when the run would resume after its last step."""
    trainer = config.trainer
    latest = Path(trainer.default_local_dir) / "latest_checkpointed_iteration.txt"  # written by verl
    if trainer.resume_mode != "auto" or trainer.total_training_steps is None or not latest.is_file():
        return
    if (done := int(latest.read_text())) >= trainer.total_training_steps:
        print(
            f"wavalign: {trainer.default_local_dir} has {done} steps and trainer.total_training_steps="
            f"{trainer.total_training_steps} asks for no more. To go on, raise it above {done}; to start anew, give "
            "trainer.experiment_name=NAME",
            flush=True,
        )
        raise SystemExit(0)


def check_config(config: DictConfig) -> WavAlignConfig:
    """Check the keys that the method depends on. Raises :class:`ConfigError`."""
    node: Any = OmegaConf.to_container(config.wavalign, resolve=True)
    wav = WavAlignConfig.from_mapping(node)
    actor, rollout, algorithm = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.algorithm
    from wavalign_ext.weights import AGGREGATIONS

    rules = {
        "algorithm.adv_estimator": (algorithm.adv_estimator == "wavalign", "use wavalign with trainer_mode=wavalign"),
        "actor_rollout_ref.actor.use_kl_loss": (
            actor.use_kl_loss or wav.kl.text == wav.kl.speech == 0,
            f"wavalign.kl (text {wav.kl.text}, speech {wav.kl.speech}) needs a reference policy: set it to true, "
            "or both coefficients to 0",
        ),
        "actor_rollout_ref.rollout.n": (
            rollout.n >= 2 or (wav.mixing.type == "fixed" and wav.mixing.value == 0),
            "an advantage compares at least 2 rollouts of a prompt",
        ),
        "actor_rollout_ref.rollout.enable_chunked_prefill": (
            not (rollout.enable_chunked_prefill and config.trainer.device == "cpu"),
            "vLLM cannot cut a prompt of a seeded answer on a CPU: set it to false",
        ),
        "actor_rollout_ref.actor.loss_agg_mode": (
            actor.loss_agg_mode in AGGREGATIONS,
            f"one of {', '.join(AGGREGATIONS)}",
        ),
        "actor_rollout_ref.actor.shuffle": (
            not actor.shuffle,
            "each rank would shuffle by itself and tear mini-batches apart: set it to false",
        ),
        "algorithm.use_kl_in_reward": (
            not algorithm.use_kl_in_reward,
            "use wavalign.kl, which knows the modalities, and set this to false",
        ),
        "algorithm.rollout_correction.rollout_is": (
            not OmegaConf.select(config, "algorithm.rollout_correction.rollout_is"),
            "the trainer wavalign does not apply it: set it to null",
        ),
    }
    for key, (ok, remedy) in rules.items():
        if not ok:
            raise ConfigError(f"{key}={OmegaConf.select(config, key)!r} is not allowed: {remedy}")
    return wav


def check_model(config: DictConfig, wav: WavAlignConfig) -> Any:
    """Check that model, tokenizer, layout, codec and reward terms load and agree; returns the tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    from wavalign_ext.codecs import load_codec
    from wavalign_ext.layout import load_layout
    from wavalign_ext.lora import check_head
    from wavalign_ext.rewards import build_terms

    path, trust = config.actor_rollout_ref.model.path, config.actor_rollout_ref.model.trust_remote_code
    if str(path).startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
        raise ConfigError(f"actor_rollout_ref.model.path={path!r} is not a folder: give a Hugging Face model folder")
    try:
        model_config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        message = f"actor_rollout_ref.model.path={path!r} does not load: {_one_line(error)}"
        raise ConfigError(message) from error
    vocab_size = model_config.vocab_size
    surplus = vocab_size - len(tokenizer)
    if surplus and not any(0 < surplus < most and vocab_size % step == 0 for step, most in ROUNDINGS.items()):
        raise ConfigError(
            f"the tokenizer in {path!r} has {len(tokenizer)} tokens and the model {vocab_size}: they must be equal, or "
            "the model's the next multiple of 8, or a multiple of 64 by less than 1024 padding rows; resize the "
            "model's embeddings, or use the tokenizer it was trained with"
        )
    check_head(config, model_config)
    _check_length(config, model_config)
    layout = load_layout(wav.layout).resolve(tokenizer, vocab_size)
    codec = load_codec(wav.codec)
    speech_tokens = layout.speech_end - layout.speech_start
    if codec.codebook_size != speech_tokens:
        raise ConfigError(
            f"the codec {wav.codec['type']!r} has {codec.codebook_size} codes and layout {layout.layout.name!r} "
            f"{speech_tokens} speech tokens: choose a codec and a layout that belong together"
        )
    build_terms(wav.reward.terms, wav.reward.scale)
    return tokenizer


def _check_length(config: DictConfig, model_config: Any) -> None:
    """vLLM would refuse a sequence that the model has no positions for, minutes later."""
    rollout, data = config.actor_rollout_ref.rollout, config.data
    positions = getattr(model_config, "max_position_embeddings", None)
    key, longest = "actor_rollout_ref.rollout.max_model_len", rollout.max_model_len
    if longest is None:
        key, longest = "data.max_prompt_length + max_response_length", data.max_prompt_length + data.max_response_length
    if positions is not None and longest > positions:
        raise ConfigError(f"{key}={longest} is more than the model's {positions} positions: lower it")
    if longest < data.max_prompt_length + data.max_response_length:
        raise ConfigError(
            f"{key}={longest} is less than data.max_prompt_length + data.max_response_length "
            f"({data.max_prompt_length} + {data.max_response_length}): raise it, or lower one of these"
        )


def check_data(config: DictConfig, wav: WavAlignConfig, tokenizer: Any) -> dict[str, int]:
    """Check every row of the training and validation files; returns the row count of each file."""
    from wavalign_ext.layout import load_layout

    layout = load_layout(wav.layout).resolve(tokenizer)
    encode = _raw_rows(config, tokenizer)
    counts = {}
    for key in ("train_files", "val_files"):
        for name in _as_list(config.data[key]):
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
    prompt = tokenizer.apply_chat_template(list(row["prompt"]), add_generation_prompt=True, tokenize=True)
    ids = prompt if isinstance(prompt, list) else prompt["input_ids"]
    if not any(layout.heard_start <= i < layout.heard_end for i in ids):
        raise ConfigError(
            f"{where}: the prompt has no audio: no token of the user's speech ({layout.layout.name}) is in it"
        )
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
        raise ConfigError(f"{where}: {name} {str(path)!r} cannot be read: {_one_line(error)}") from error
    if frames == 0:
        raise ConfigError(f"{where}: {name} {str(path)!r} is empty")


def _raw_rows(config: DictConfig, tokenizer: Any) -> Any:
    """What encodes the recordings of a row, where the data set is one that does; None elsewhere."""
    if OmegaConf.select(config, "data.custom_cls.name") != "RawAudioDataset":
        return None
    from wavalign_ext.dataset import raw_rows

    return raw_rows(config.data, tokenizer, config.data.get("audio_key", "audios"))


def _rows(name: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(name).iter_batches():
        yield from batch.to_pylist()


def _build_pocket(config: DictConfig) -> None:
    """Build the embedded default, unless it is there or nothing in the run uses it."""
    from wavalign_ext import pocket

    folder = str(pocket.pocket_dir())
    used = [config.actor_rollout_ref.model.path, *_as_list(config.data.train_files), *_as_list(config.data.val_files)]
    if any(str(path).startswith(folder) for path in used):
        from wavalign_ext.pocket.build import build

        build()


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _summary(config: DictConfig, wav: WavAlignConfig, rows: dict[str, int]) -> str:
    rollout, layout = config.actor_rollout_ref.rollout, wav.layout
    mixing = f"fixed {wav.mixing.value}" if wav.mixing.type == "fixed" else f"adaptive, at most {wav.mixing.lambda_max}"
    lines = {
        "model": config.actor_rollout_ref.model.path,
        "layout": layout if isinstance(layout, str) else layout.get("name"),
        "data": ", ".join(f"{Path(name).name} {count} rows" for name, count in rows.items()),
        "rollouts": f"{config.data.train_batch_size} prompts × {rollout.n} at temperature {rollout.temperature}",
        "preference": f"{wav.preference.tokens} tokens, KL text {wav.kl.text}, speech {wav.kl.speech}",
        "anchor": f"{wav.anchor.tokens} tokens" if wav.uses_anchor else "off (λ = 1)",
        "λ": mixing,
        "reward": ", ".join(f"{name} {term['weight']}" for name, term in wav.reward.terms.items()),
        "output": config.trainer.default_local_dir,
    }
    return "\n".join(f"wavalign: {name:<11}{value}" for name, value in lines.items())
