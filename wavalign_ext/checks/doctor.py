"""``wavalign doctor [OVERRIDE ...]``: whether this machine can train what the overrides describe, before a run tries.

It composes the recipe as verl's command does, with the same overrides (``+recipe=wavalign`` when none names a recipe),
and checks part after part. Each line that fails says what to do; the exit status is then 1.
"""

import argparse
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from wavalign_ext.integration import versions
from wavalign_ext.verl_keys import OFFLINE

ABOUT = """Whether this machine can train what the overrides describe, before a run tries: versions, plugin,
accelerator, recipe, model, tokenizer against layout, codec, data, reward terms and judges, disk and memory.
Each line that fails says what to do; the exit status is then 1. Nothing is trained or changed."""
EXAMPLE = """examples:
  wavalign doctor                                   the recipe wavalign, on the pocket model
  wavalign doctor +recipe=grpo_text data.train_files=train.parquet data.val_files=val.parquet"""
OK, WARN, FAIL, SKIP = "ok", "warn", "FAIL", "skip"
GIB = 2**30
# Host memory that a job wants: its processes, as measured with the pocket model, and per parameter a float32 policy
# with its gradient and AdamW's two moments, a reference policy and the rollout engine's copy.
PROCESSES_GIB, TRAINED_BYTES, CHECKPOINT_BYTES = 12, 24, 12
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``remedy`` where the state is FAIL or WARN."""

    name: str
    state: str
    text: str
    remedy: str = ""


@dataclass
class DoctorContext:
    """What the checks find out for those after them."""

    overrides: list[str]
    platform: str = ""  # VERL_PLATFORM as the user set it
    config: Any = None
    wav: Any = None
    tokenizer: Any = None
    layout: Any = None
    parameters: int = 0
    unbuilt: bool = False  # the run will build the pocket assets that it uses


def main(argv: Sequence[str] | None = None) -> int:
    """Print every check's findings; 1 when one failed."""
    parser = argparse.ArgumentParser(
        prog="wavalign doctor", description=ABOUT, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="what verl.trainer.main_ppo will be given")
    overrides = parser.parse_args(argv).overrides
    failed = 0
    for finding in examine(overrides):
        print(f"{finding.state:<5} {finding.name:<12} {finding.text}", flush=True)
        if finding.remedy and finding.state in (FAIL, WARN):
            print(f"{'':<18} → {finding.remedy}", flush=True)
        failed += finding.state == FAIL
    print(f"wavalign: {failed or 'no'} check{'s' if failed > 1 else ''} failed")
    return int(failed > 0)


def examine(overrides: Sequence[str]) -> Iterator[Finding]:
    """The findings of all checks, as they are made. An unexpected error of a check is its finding."""
    context = DoctorContext(list(overrides), os.environ.get("VERL_PLATFORM", ""))
    for name, check in CHECKS.items():
        try:
            yield from check(context)
        except Exception as error:  # a check that breaks must not hide those after it
            yield Finding(name, FAIL, _one_line(error), "correct what the message names")


def check_versions(_: DoctorContext) -> Iterator[Finding]:
    """Python, the packages that pyproject.toml asks for, and those that must be of a tested version."""
    from packaging.requirements import Requirement

    python = metadata.metadata("wavalign")["Requires-Python"]
    found = ".".join(map(str, sys.version_info[:3]))
    yield _version("python", found, Requirement(f"python{python}"), "make a virtual environment with that Python")
    for text in metadata.requires("wavalign") or []:
        wanted = Requirement(text)
        if wanted.name in versions.TESTED or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        yield _version(wanted.name, _installed(wanted.name), wanted, f"pip install '{wanted}'")
    for name, (distribution, found) in versions.installed().items():
        wanted = Requirement(f"{distribution}{versions.TESTED[name]}")
        remedy = f"pip install '{wanted}', or go on at your own risk with {versions.AT_YOUR_OWN_RISK}=1"
        yield _version(distribution, found, wanted, remedy)


def check_plugin(_: DoctorContext) -> Iterator[Finding]:
    """Whether verl loads the plugin."""
    import verl

    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if "wavalign_ext.plugin" in sys.modules:
        yield Finding("plugin", OK, f"verl {verl.__version__} loaded it")
        return
    remedy = "unset VERL_USE_EXTERNAL_PLUGINS or add wavalign to it; if it is unset: pip install -e . --no-deps"
    yield Finding("plugin", FAIL, f"verl did not load it (VERL_USE_EXTERNAL_PLUGINS={policy})", remedy)


def check_accelerator(context: DoctorContext) -> Iterator[Finding]:
    """What a run would compute on."""
    import torch

    from wavalign_ext.integration.hardware import accelerator_visible

    cores = len(os.sched_getaffinity(0))
    if not accelerator_visible():
        state = FAIL if context.platform not in ("", "cpu") else OK
        asked = f"VERL_PLATFORM={context.platform}, but " if context.platform else ""
        remedy = "install the driver and a torch for it, or unset VERL_PLATFORM to train on the CPU"
        yield Finding("accelerator", state, f"{asked}none is visible: CPU with {cores} cores", remedy)
    elif torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        yield Finding("accelerator", OK, ", ".join(f"{c.name} {c.total_memory / GIB:.0f} GiB" for c in cards))
    else:
        yield Finding("accelerator", OK, "an NPU is visible")


def check_recipe(context: DoctorContext) -> Iterator[Finding]:
    """Compose the configuration and check the keys of the method."""
    from omegaconf import OmegaConf

    from wavalign_ext.checks.recipe import compose_recipe
    from wavalign_ext.integration import run

    overrides, config, context.wav = compose_recipe(context.overrides)
    context.config = config
    yield Finding("recipe", OK, " ".join(overrides))
    told = OmegaConf.select(config, f"{run.VARIABLES}.VERL_PLATFORM")
    yield Finding("platform", OK, f"{told}, on every machine of the run (wavalign/hardware, VERL_PLATFORM)")


def check_model(context: DoctorContext) -> Iterator[Finding]:
    """The model's folder, and its tokenizer against the layout."""
    if context.config is None:
        yield Finding("model", SKIP, "the recipe does not compose")
        return
    from transformers import AutoConfig, AutoTokenizer

    from wavalign_ext import models, parallel, pocket
    from wavalign_ext.checks.preflight_heard import check_hearing
    from wavalign_ext.speech.layout import load_layout

    models.register()
    parallel.register()
    node = context.config.actor_rollout_ref.model
    path, remedy = Path(str(node.path)).expanduser(), "set actor_rollout_ref.model.path to a Hugging Face folder"
    if path.is_relative_to(pocket.pocket_dir()) and not (pocket.pocket_dir() / "report.json").is_file():
        context.unbuilt = True
        yield Finding("model", WARN, "the pocket assets are not built", "wavalign pocket, or let the run build them")
        return
    if not (path / "config.json").is_file():
        yield Finding("model", FAIL, f"{str(path)!r} has no config.json", remedy)
        return
    config = AutoConfig.from_pretrained(path, trust_remote_code=node.trust_remote_code)
    weights = sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in path.glob(pattern))
    size = 4 if str(config.dtype).endswith("float32") or config.dtype is None else 2
    context.parameters = weights // size
    state = OK if weights else FAIL
    yield Finding("model", state, f"{config.model_type}, {context.parameters / 1e6:.1f}M parameters, {path}", remedy)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=node.trust_remote_code)
    layout = load_layout(context.wav.layout).resolve(tokenizer, config.vocab_size)
    context.tokenizer, context.layout = tokenizer, layout
    speech = layout.speech_end - layout.speech_start
    yield Finding("layout", OK, f"{layout.layout.name}: {speech} speech tokens of {config.vocab_size}")
    check_hearing(context.config, layout, config)
    if (facts := layout.layout.encoder) is not None:
        yield Finding(
            "hearing", OK, f"by {facts.type}, {facts.size} numbers per vector, at {facts.placeholder or 'codes'}"
        )


def check_codec(context: DoctorContext) -> Iterator[Finding]:
    """One second of a tone through the answer's codec and back, and into the one of the user's speech."""
    if context.config is None or context.unbuilt:
        yield Finding("codec", SKIP, "what it needs is missing: see above")
        return
    from wavalign_ext.speech.codecs import load_codec

    spec = context.wav.codec
    codec, layout = load_codec(spec, device="cpu"), context.layout
    wanted = codec.codebook_size if layout is None else layout.speech_end - layout.speech_start
    codes = codec.encode(_tone(codec.sample_rate))
    wave = codec.decode(codes)
    seconds = len(wave) / codec.sample_rate
    good = bool(codes) and np.isfinite(wave).all() and 0.7 < seconds < 1.5 and codec.codebook_size == wanted
    text = (
        f"{spec['type']}: 1 s → {len(codes)} codes of {codec.codebook_size} → {seconds:.2f} s at {codec.sample_rate} Hz"
    )
    remedy = f"a codec with {wanted} codes whose round trip keeps the length: check wavalign.codec and the layout"
    yield Finding("codec", OK if good else FAIL, text, remedy)
    if context.wav.input_codec:
        heard = load_codec(context.wav.input_codec, device="cpu")
        count = len(heard.encode(_tone(heard.sample_rate)))
        text = f"{context.wav.input_codec['type']}: 1 s → {count} codes of {heard.codebook_size}"
        yield Finding("input codec", OK if count else FAIL, text, "check wavalign.input_codec")


def check_data(context: DoctorContext) -> Iterator[Finding]:
    """Every row of the training and validation files."""
    if context.tokenizer is None:
        yield Finding("data", SKIP, "it is checked with the tokenizer: see above")
        return
    from wavalign_ext.checks.preflight import check_data

    counts = check_data(context.config, context.wav, context.tokenizer)
    yield Finding("data", OK, ", ".join(f"{Path(name).name} {count} rows" for name, count in counts.items()))


def check_rewards(context: DoctorContext) -> Iterator[Finding]:
    """The reward terms are built, and each judge's endpoint is asked for its models, which costs nothing."""
    if context.config is None or context.unbuilt:
        yield Finding("rewards", SKIP, "what they need is missing: see above")
        return
    from omegaconf import OmegaConf

    if OmegaConf.select(context.config, "trainer.v1.trainer_mode") == OFFLINE:
        yield Finding("rewards", OK, "none: pairs of the data are not scored")
        return
    from wavalign_ext.rewards import build_terms

    terms = context.wav.reward.terms
    build_terms(terms, context.wav.reward.scale)
    yield Finding("rewards", OK, ", ".join(terms))
    for name, node in terms.items():
        if node.get("type", name) == "judge":
            yield _judge(name, node["endpoint"])


def check_disk_and_memory(context: DoctorContext) -> Iterator[Finding]:
    """Disk for checkpoints and memory for the job."""
    import psutil

    folder, keep = Path("runs"), 2
    if context.config is not None:
        folder, keep = (
            Path(context.config.trainer.default_local_dir),
            context.config.trainer.max_actor_ckpt_to_keep or 2,
        )
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free, need = shutil.disk_usage(there).free / GIB, 1 + (keep + 1) * CHECKPOINT_BYTES * context.parameters / GIB
    text = f"{free:.1f} GiB free at {there}, about {need:.1f} wanted for {keep + 1} checkpoints"
    remedy = "free some, or set trainer.default_local_dir elsewhere, or keep fewer (trainer.max_actor_ckpt_to_keep)"
    yield Finding("disk", OK if free >= need else FAIL, text, remedy)
    on_cpu = context.config is None or context.config.trainer.device == "cpu"
    need = PROCESSES_GIB + (TRAINED_BYTES if on_cpu else 4) * context.parameters / GIB
    have = psutil.virtual_memory().available / GIB
    text = f"{have:.1f} GiB available, about {need:.1f} wanted"
    yield Finding("memory", OK if have >= need else FAIL, text, "end other programs, or use a smaller model or machine")


CHECKS: dict[str, Callable[[DoctorContext], Iterator[Finding]]] = {
    "versions": check_versions,
    "plugin": check_plugin,
    "accelerator": check_accelerator,
    "recipe": check_recipe,
    "model": check_model,
    "codec": check_codec,
    "data": check_data,
    "rewards": check_rewards,
    "disk": check_disk_and_memory,
}


def _judge(name: str, node: Any) -> Finding:
    """Any answer means that it is there; 401 and 403 mean that the key is refused."""
    from wavalign_ext.rewards.chat import Endpoint

    endpoint = Endpoint(**node)
    key, url = endpoint.key(), endpoint.url.rstrip("/") + "/models"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    remedy = f"check wavalign.reward.terms.{name}.endpoint.url, and that the server runs and is reachable from here"
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return Finding("judge", OK, f"{name}: {url} answers {answer.status}")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            where = endpoint.api_key_env or f"wavalign.reward.terms.{name}.endpoint.api_key_env"
            return Finding("judge", FAIL, f"{name}: {url} answers {error.code}", f"it refuses the key: check {where}")
        return Finding("judge", OK, f"{name}: {url} answers {error.code}: it is there, but lists no models")
    except (OSError, ValueError) as error:
        return Finding("judge", FAIL, endpoint.redacted(f"{name}: {url}: {_one_line(error)}"), remedy)


def _version(name: str, found: str | None, wanted: Any, remedy: str) -> Finding:
    allowed = f" (wanted: {wanted.specifier})" if wanted.specifier else ""
    if found is None:
        return Finding(name, FAIL, f"is not installed{allowed}", remedy)
    good = wanted.specifier.contains(found, prereleases=True)
    return Finding(name, OK if good else FAIL, f"{found}{allowed}", remedy)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _tone(rate: int) -> np.ndarray:
    """One second of a voice-like buzz: harmonics of 150 Hz."""
    t = np.arange(rate) / rate
    return sum(0.2 / n * np.sin(2 * np.pi * 150 * n * t) for n in range(1, 8)).astype(np.float32)  # pyright: ignore


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
