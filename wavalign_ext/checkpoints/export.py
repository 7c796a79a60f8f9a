"""``wavalign export RUN DST``: a finished run as a Hugging Face folder.

DST holds weights, tokenizer and configuration, which transformers and vLLM load; ``generation_config.json`` with the
run's sampling and the layout's end tokens; and ``wavalign_layout.yaml``, which ``wavalign.layout`` of a recipe takes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from wavalign_ext.checkpoints import ears, kimi_audio
from wavalign_ext.checkpoints.convert import new_folder
from wavalign_ext.checkpoints.whole import STEP, latest_step
from wavalign_ext.speech.layout import LayoutError, load_layout

LAYOUT_FILE = "wavalign_layout.yaml"
DTYPES = {"checkpoint": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class ExportError(ValueError):
    """A run folder that cannot be exported. The message names what is missing and the remedy."""


def export(
    run: Path, target: Path, step: int | None = None, dtype: str = "checkpoint", published: bool = False
) -> Path:
    """Write checkpoint ``step`` (the latest by default) of ``run`` to the new folder ``target``; returns its source.

    Args:
        published: as the model's publisher has it, with what ``wavalign convert`` put aside.

    Raises:
        ExportError: no checkpoint, or a run of another kind.
        ConvertError: ``target`` is not empty.
    """
    actor = find_checkpoint(run, step)
    config = run_config(run)
    with new_folder(target) as folder:
        from wavalign_ext.checkpoints.merge import merge  # imports verl

        merge(actor, folder, DTYPES[dtype])
        _write_layout(config, folder)
        _write_generation(config, folder)
        if published:
            model = Path(config.actor_rollout_ref.model.path)
            if (model / kimi_audio.FOLDER).is_dir():
                kimi_audio.publish(folder, model)
            else:
                ears.publish(folder, model / ears.FOLDER)
    return actor


def find_checkpoint(run: Path, step: int | None = None) -> Path:
    """``run/global_step_N/actor`` of the step, or of the run's latest one. Raises :class:`ExportError`: there is none.

    The latest is what a resume would go on from: a newer one may be of a run that went wrong after it.
    """
    steps = sorted(
        int(path.name.removeprefix(STEP)) for path in run.glob(f"{STEP}*") if path.name[len(STEP) :].isdigit()
    )
    if not steps:
        raise ExportError(f"{str(run)!r} has no {STEP}N folder: give the trainer.default_local_dir of a run")
    if step is not None and step not in steps:
        raise ExportError(f"step {step} is not in {str(run)!r}: it has {', '.join(map(str, steps))}")
    if step is None:
        latest = latest_step(run)
        step = latest if latest in steps else steps[-1]
    actor = run / f"{STEP}{step}" / "actor"
    if not (actor / "fsdp_config.json").is_file():
        raise ExportError(f"{str(actor)!r} has no fsdp_config.json: only verl's FSDP checkpoints are exported")
    world = json.loads((actor / "fsdp_config.json").read_text())["world_size"]
    for rank in range(world):
        if not (actor / f"model_world_size_{world}_rank_{rank}.pt").is_file():
            problem = f"rank {rank} of {world} is missing: gather every node's files, or set checkpoint.save_contents"
            raise ExportError(f"{str(actor)!r}: {problem} to have model in it")
    return actor


def run_config(run: Path) -> DictConfig:
    """The configuration that Hydra kept of the run. Raises :class:`ExportError`: not there, or without ``wavalign``."""
    path = run / "hydra" / "config.yaml"
    config = OmegaConf.load(path) if path.is_file() else None
    if not isinstance(config, DictConfig) or "wavalign" not in config:
        raise ExportError(f"{str(path)!r} is not a WavAlign run's configuration: give a run's folder")
    return config


def _write_layout(config: DictConfig, folder: Path) -> None:
    node: Any = config.wavalign.layout
    if isinstance(node, str):  # a name or a file, as load_layout takes them
        named = resources.files("wavalign_recipes") / "layout" / f"{node}.yaml"
        text = (Path(node) if node.endswith((".yaml", ".yml")) else named).read_text(encoding="utf-8")
    else:
        text = OmegaConf.to_yaml(node, resolve=True)
    (folder / LAYOUT_FILE).write_text(text, encoding="utf-8")


def _write_generation(config: DictConfig, folder: Path) -> None:
    """Sampling as in the run's rollouts; every end token of the layout ends a response."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    try:
        layout = load_layout(folder / LAYOUT_FILE).resolve(tokenizer)
    except LayoutError as error:
        raise ExportError(f"the run's layout does not fit its tokenizer: {error}") from error
    rollout = config.actor_rollout_ref.rollout
    settings = {
        "do_sample": True,
        "temperature": float(rollout.temperature),
        "top_p": float(rollout.top_p),
        "top_k": max(int(rollout.get("top_k", -1)), 0),  # -1 is vLLM's "all"; transformers says 0, vLLM takes both
        "max_new_tokens": int(config.data.max_response_length),
        "eos_token_id": list(layout.eos_ids),
        "pad_token_id": layout.pad_id if layout.pad_id is not None else layout.eos_ids[0],
    }
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="wavalign export",
        description="Write a checkpoint as a Hugging Face folder that transformers and vLLM load. LoRA is merged in.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder: trainer.default_local_dir")
    parser.add_argument("target", metavar="DST", type=Path, help="new folder")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the latest")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), default="checkpoint", help="of the weights; default: as they were trained"
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="for the publisher's own code, with its encoder (vita-audio-plus, step-audio2-mini, kimi-audio)",
    )
    arguments = parser.parse_args(argv)
    try:
        source = export(arguments.run, arguments.target, arguments.step, arguments.dtype, arguments.published)
    except (ValueError, OSError, ImportError) as error:
        print(f"wavalign export: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(
        f"wavalign export: {source} → {arguments.target}; its layout: wavalign.layout={arguments.target / LAYOUT_FILE}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
