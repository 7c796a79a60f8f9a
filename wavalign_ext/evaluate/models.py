"""What is evaluated: runs and exported folders, each with the layout, codecs and sampling that it speaks with."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wavalign_ext.checkpoints.export import LAYOUT_FILE, STEP, export, find_checkpoint, run_config
from wavalign_ext.checkpoints.record import weights_print
from wavalign_ext.checkpoints.whole import read_state
from wavalign_ext.integration import resolvers


@dataclass(frozen=True)
class Voice:
    """How a model is asked and heard: what a run's configuration says beside its weights.

    ``sampling``: temperature, top_p, top_k. ``longest_answer`` and ``longest_prompt`` in tokens. ``terms`` and
    ``scale`` are the reward's; ``held_out`` the run's validation files.
    """

    layout: Any
    codec: Mapping[str, Any]
    input_codec: Mapping[str, Any] | None
    encoder: Mapping[str, Any] | None
    sampling: Mapping[str, float]
    longest_answer: int
    longest_prompt: int
    dtype: str = "auto"
    constrained: bool = False
    chat: Mapping[str, Any] = field(default_factory=dict)
    audio_root: Path = Path(".")
    held_out: tuple[Path, ...] = ()
    terms: Mapping[str, Any] = field(default_factory=dict)
    scale: tuple[float, float] = (1.0, 5.0)


@dataclass(frozen=True)
class SpokenModel:
    """A folder that vLLM loads, by the name that tables and pages have for it."""

    name: str
    folder: Path
    voice: Voice

    @property
    def key(self) -> str:
        """Of weights and voice: answers are kept under it. Weights by path, size and time, not by their content."""
        digest = hashlib.sha256(str(self.folder.resolve()).encode())
        for file in sorted(self.folder.glob("*.safetensors")):
            told = file.stat()
            digest.update(f"{file.name},{told.st_size},{told.st_mtime_ns}".encode())
        said = [self.voice.layout, dict(self.voice.sampling), self.voice.longest_answer, self.voice.constrained]
        digest.update(json.dumps(said, sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]


def load_models(
    sources: Sequence[Path], base: str | None, out: Path, codec: Any = None, input_codec: Any = None
) -> list[SpokenModel]:
    """The models, the base first where there is one. A run's newest checkpoint is exported into ``out``/models.

    Args:
        base: a run or folder; "" for the model that the first run began with.
        codec, input_codec: for folders, where no run among ``sources`` says it.

    Raises:
        ValueError: no run and no folder, one without a checkpoint, or without a codec.
    """
    resolvers.register()
    runs = [source for source in sources if (source / "hydra").is_dir()]
    voice = voice_of_run(runs[0]) if runs else None
    codecs = {"codec": codec, "input_codec": input_codec}
    found = [_load(source, voice, out, codecs) for source in sources]
    if base is None:
        return _named(found)
    if base:
        return _named([_load(Path(base), voice, out, codecs), *found])
    if voice is None:
        raise ValueError("--base without a folder is the model that a run began with: give a run, or --base FOLDER")
    began = Path(run_config(runs[0]).actor_rollout_ref.model.path)
    if not (began / "config.json").is_file():
        raise ValueError(f"--base: the model that {str(runs[0])!r} began with is not in {str(began)!r}: leave it out")
    return _named([SpokenModel("base", began, voice), *found])


def _load(source: Path, voice: Voice | None, out: Path, codecs: Mapping[str, Any]) -> SpokenModel:
    if (source / "hydra").is_dir():
        return _of_run(source, out)
    if not (source / "config.json").is_file():
        raise ValueError(f"{str(source)!r} is neither a run (hydra/, {STEP}N/) nor an exported folder (config.json)")
    return SpokenModel(source.name, source, _voice_of_folder(source, voice, codecs))


def _of_run(run: Path, out: Path) -> SpokenModel:
    checkpoint = find_checkpoint(run).parent
    _check_origin(run, checkpoint)
    step = checkpoint.name
    place = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:6]
    folder = out / "models" / f"{run.name}-{place}-{step.removeprefix(STEP)}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        export(run, folder)
    return SpokenModel(run.resolve().name, folder, voice_of_run(run))


def _check_origin(run: Path, checkpoint: Path) -> None:
    """Raises ValueError: another model lies today where the run began: built anew, and perhaps its codec with it."""
    path = str(run_config(run).actor_rollout_ref.model.path)
    trained = ((read_state(checkpoint) or {}).get("run") or {}).get("weights")  # older checkpoints have none
    there = (Path(path) / "config.json").is_file()
    if trained is not None and there and trained != weights_print(path):
        raise ValueError(
            f"{str(run)!r} began with another model than {path!r} is today; its base, and perhaps its codec and rows, "
            "are gone: evaluate it with the version that trained it, or its exported folder with --codec and --set"
        )


def voice_of_run(run: Path) -> Voice:
    """The voice that Hydra's record of a run describes; sampling is that of its validation.

    Raises:
        ValueError: the record is not there, or names what this machine does not have.
    """
    config = run_config(run)
    wav, rollout, data = config.wavalign, config.actor_rollout_ref.rollout, config.data
    held = config.actor_rollout_ref.rollout.val_kwargs
    files = _plain(data.val_files)
    sampling = {"temperature": float(held.temperature), "top_p": float(held.top_p), "top_k": int(held.get("top_k", -1))}
    return Voice(
        layout=_plain(wav.layout),
        codec=_plain(wav.codec),
        input_codec=_plain(wav.get("input_codec")),
        encoder=_plain(wav.get("encoder")),
        sampling=sampling if held.do_sample else sampling | {"temperature": 0.0},
        longest_answer=int(data.max_response_length),
        longest_prompt=int(data.max_prompt_length),
        dtype=str(rollout.get("dtype") or "auto"),
        constrained=bool(wav.get("constrained_decoding")),
        chat=_plain(data.get("apply_chat_template_kwargs")) or {},
        audio_root=Path(_plain(wav.get("audio_root")) or "."),
        held_out=tuple(map(Path, [files] if isinstance(files, str) else files)),
        terms=_plain(wav.reward.terms),
        scale=tuple(_plain(wav.reward.scale)),
    )


def _voice_of_folder(folder: Path, voice: Voice | None, codecs: Mapping[str, Any]) -> Voice:
    """A run's voice, or what ``wavalign export`` wrote and the command line says."""
    if voice is not None and not codecs["codec"]:
        return voice
    if not (folder / LAYOUT_FILE).is_file():
        raise ValueError(
            f"{str(folder)!r} has no {LAYOUT_FILE}: export it with wavalign export, or give a run beside it"
        )
    if not codecs["codec"]:
        raise ValueError(f"{str(folder)!r} does not say its codec: give --codec, or a run beside it")
    layout: Any = OmegaConf.to_container(OmegaConf.load(folder / LAYOUT_FILE), resolve=True)
    file = folder / "generation_config.json"
    told = json.loads(file.read_text()) if file.is_file() else {}
    sampling = {"temperature": told.get("temperature", 1.0), "top_p": told.get("top_p", 1.0)}
    longest = int(told.get("max_new_tokens", 1024))
    heard = codecs["input_codec"] or codecs["codec"]
    return Voice(layout, codecs["codec"], heard, None, sampling | {"top_k": -1}, longest, 4096)


def _plain(node: Any) -> Any:
    if isinstance(node, DictConfig) or OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=True)
    return node


def _named(models: list[SpokenModel]) -> list[SpokenModel]:
    """Each with a name of its own."""
    names: dict[str, int] = {}
    made = []
    for model in models:
        names[model.name] = names.get(model.name, 0) + 1
        count = names[model.name]
        made.append(replace(model, name=model.name if count == 1 else f"{model.name} ({count})"))
    return made
