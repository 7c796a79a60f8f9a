"""SenseVoiceSmall's folder as FunASR publishes it, with weights and am.mvn from formulas."""

from pathlib import Path

import torch
from formula_weights import noise, tensors_of

from wavalign_ext.speech.encoders import sanm

SMALL = sanm.Shape(input=560, size=32, feed_forward=64, kernel=11, blocks=3, last_blocks=2)


def write_funasr(folder: Path, shape: sanm.Shape, **changed: torch.Tensor) -> dict[str, torch.Tensor]:
    """A folder as FunASR publishes it, its CTC head included; returns the tensors of the encoder."""
    with torch.device("meta"):
        tensors = tensors_of(sanm.SenseVoice(shape)) | changed
    folder.mkdir(exist_ok=True)
    torch.save(tensors | {"ctc.ctc_lo.weight": torch.zeros(30, shape.size)}, folder / "model.pt")
    write_cmvn(folder / "am.mvn")
    return tensors


def write_cmvn(path: Path, count: int = 560) -> None:
    shift = " ".join(f"{-12 + value:.6f}" for value in noise("shift", count))
    scale = " ".join(f"{0.2 + 0.05 * value:.6f}" for value in noise("scale", count))
    path.write_text(
        f"<Nnet> \n<Splice> {count} {count} \n[ 0 ]\n<AddShift> {count} {count} \n<LearnRateCoef> 0 [ {shift} ]\n"
        f"<Rescale> {count} {count}\n<LearnRateCoef> 0 [ {scale} ]\n</Nnet> \n"
    )
