"""``wavalign convert KIND SRC DST``: a published model as a folder that transformers, verl and vLLM load as it is.

Models with a class of their own cannot be trained here: verl and vLLM would run their code, or not know them at all. A
kind (:data:`KINDS`) says which tensors of SRC go where in a class of transformers; weights are rewritten file by file,
in their own dtype, and every name and shape is checked against that class.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from wavalign_ext import models, parallel
from wavalign_ext.checkpoints import glm4_voice, kimi_audio, qwen2_audio, step_audio2, vita_audio, vita_audio_plus
from wavalign_ext.checkpoints.plan import ConvertError, Plan, read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def convert(kind: str, source: Path, target: Path) -> Plan:
    """Convert the model folder ``source`` into the new folder ``target``.

    Raises:
        ConvertError: an unknown kind, ``source`` is another model or incomplete, or ``target`` is not empty.
    """
    if kind not in KINDS:
        raise ConvertError(f"kind {kind!r} is not known: one of {', '.join(KINDS)}")
    try:
        plan = KINDS[kind](source, read_json(source / "config.json"))
    except KeyError as error:
        raise ConvertError(f"{str(source / 'config.json')!r} has no {error}: give the published folder") from error
    with new_folder(target) as folder:
        plan.tokenizer(source, folder)
        write_chat_template(folder, plan.layout)
        check_tokenizer(folder, plan)
        move_weights(source, folder, plan)
        if plan.beside is not None:
            plan.beside(source, folder)
        plan.config.save_pretrained(folder)
        (folder / "generation_config.json").write_text(json.dumps(plan.generation, indent=2) + "\n")
    return plan


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that becomes it at the end, so that a failure leaves nothing that looks whole.

    Raises:
        ConvertError: ``target`` is there and not empty.
    """
    if target.exists() and any(target.iterdir()):
        raise ConvertError(f"{str(target)!r} is not empty: give a new folder")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_weights(source: Path, target: Path, plan: Plan) -> None:
    """Rewrite the weight files one by one; the memory needed is that of the largest file.

    Raises:
        ConvertError: no safetensors, a tensor that the class does not have or in another shape, or a missing one.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    wanted, where, total = shapes(plan.config), {}, 0
    files = weight_files(source)
    for file in files:
        moved: dict[str, torch.Tensor] = {}
        with safe_open(source / file, framework="pt") as tensors:
            for name in tensors.keys():
                for new_name, tensor in plan.move(name, tensors.get_tensor(name)):
                    if wanted.get(new_name) != tensor.shape:
                        found, need = tuple(tensor.shape), wanted.get(new_name)
                        need = "no such tensor" if need is None else f"shape {tuple(need)}"
                        raise ConvertError(f"{file}: {name!r} of shape {found} would be {new_name!r}: there is {need}")
                    moved[new_name] = tensor.contiguous()
        if moved:
            save_file(moved, target / file, metadata={"format": "pt"})
        where |= dict.fromkeys(moved, file)
        total += sum(tensor.nbytes for tensor in moved.values())
    if lost := sorted(wanted.keys() - where.keys()):
        raise ConvertError(f"{str(source)!r} lacks {len(lost)} tensors, first {lost[0]!r}: download all of its files")
    if files != [SINGLE]:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def weight_files(source: Path) -> list[str]:
    """Names of a model folder's safetensors files. Raises :class:`ConvertError`: there are none, or one is missing."""
    names = [SINGLE]
    if (source / INDEX).is_file():
        names = sorted(set(read_json(source / INDEX)["weight_map"].values()))
    for name in names:
        if not (source / name).is_file():
            raise ConvertError(f"{str(source)!r} has no {name}: give the folder with all its safetensors files")
    return names


def tensors_of(folder: Path, files: Sequence[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a folder's safetensors, or of some ``files`` of it, by name. Raises as :func:`weight_files`."""
    from safetensors import safe_open

    for file in weight_files(folder) if files is None else files:
        with safe_open(folder / file, framework="pt") as tensors:
            for name in tensors.keys():
                yield name, tensors.get_tensor(name)


def shapes(config: Any) -> dict[str, torch.Size]:
    """Name and shape of each tensor that the class of ``config`` stores; no memory is used."""
    from transformers import AutoModelForCausalLM

    models.register()
    parallel.register()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stored = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        stored.pop("lm_head.weight", None)
    return stored


def check_tokenizer(folder: Path, plan: Plan) -> None:
    """Load the tokenizer as verl will, and ask the layout for its tokens. Raises LayoutError (a ValueError)."""
    from transformers import AutoTokenizer

    from wavalign_ext.speech.layout import load_layout

    tokenizer = AutoTokenizer.from_pretrained(folder)
    load_layout(plan.layout).resolve(tokenizer, plan.config.vocab_size)


def write_chat_template(folder: Path, layout: str) -> None:
    """The chat template of the published inference code, which the layout has; a model's folder may hold another.

    VITA-Audio's gives a dialogue without a system message one of its own, "You are a helpful assistant".
    """
    from wavalign_ext.speech.layout import load_layout

    template = load_layout(layout).chat.template
    assert template is not None
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


KINDS: dict[str, Callable[[Path, dict[str, Any]], Plan]] = {
    "vita-audio": vita_audio.plan,
    "vita-audio-plus": vita_audio_plus.plan,
    "step-audio2-mini": step_audio2.plan,
    "qwen2-audio": qwen2_audio.plan,
    "glm4-voice": glm4_voice.plan,
    "kimi-audio": kimi_audio.plan,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="wavalign convert",
        description="Rewrite a published spoken dialogue model so that transformers, verl and vLLM load it as it is.",
        epilog="vita-audio: Balance or Boost (qwen2_mtp) without its MTP layers, a Qwen2ForCausalLM. "
        "vita-audio-plus: Plus-Vanilla (qwen2_mtp_sensevoice), a HearingQwen2ForCausalLM and its encoder. "
        "step-audio2-mini: Step-Audio 2 mini (step_audio_2), the same. "
        "qwen2-audio: Qwen2-Audio 7B (qwen2_audio), the same. "
        "glm4-voice: GLM-4-Voice 9B (chatglm), a GlmForCausalLM with a fast tokenizer. "
        "kimi-audio: Kimi-Audio 7B, a HearingTwoStreamForCausalLM with a fast tokenizer.",
    )
    parser.add_argument("kind", choices=sorted(KINDS), help="what SRC is")
    parser.add_argument("source", metavar="SRC", type=Path, help="model folder with config.json and safetensors")
    parser.add_argument("target", metavar="DST", type=Path, help="new folder")
    arguments = parser.parse_args(argv)
    try:
        plan = convert(arguments.kind, arguments.source, arguments.target)
    except (ValueError, OSError, ImportError) as error:
        print(f"wavalign convert: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"wavalign convert: {arguments.target} is a {plan.config.architectures[0]}; train it with")
    print(f"  actor_rollout_ref.model.path={arguments.target} layout@wavalign.layout={plan.layout}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
