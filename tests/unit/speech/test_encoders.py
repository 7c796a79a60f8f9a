"""What every speech encoder has: the registry, the checks, strict loading, the fingerprint."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from wavalign_ext.speech.encoders import base, load_encoder
from wavalign_ext.speech.encoders.tensors import build_network


class Steps(base.FrozenEncoder):
    """A linear of every 100 samples."""

    name, size, least_s, most_s = "steps", 3, 100 / 16000, 1.0

    def __init__(self, network: nn.Module | None = None, device: str = "cpu", **facts: int) -> None:
        torch.manual_seed(0)
        super().__init__(network or nn.Linear(100, 3), device, facts)

    def _frames(self, samples: int) -> int:
        return samples // 100

    def _encode(self, wave: torch.Tensor) -> torch.Tensor:
        return self.network(wave[: len(wave) // 100 * 100].reshape(-1, 100))


def test_an_encoder_of_another_package_is_found_by_its_name(registries: None) -> None:
    base.register_encoder("steps")(Steps)
    encoder = load_encoder({"type": "steps", "shift": 2})
    assert isinstance(encoder, Steps) and encoder.frames(16000) == 160
    with pytest.raises(ValueError, match="encoder 'steps' is registered already: choose another name"):
        base.register_encoder("steps")(Steps)


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'sense' is not known: one of qwen2_audio, sensevoice, step_audio2, whisper$"):
        load_encoder({"type": "sense", "path": "x"})


def test_features_are_on_the_cpu_in_the_encoders_dtype_and_can_take_part_in_training() -> None:
    encoder = Steps(nn.Linear(100, 3))
    features = encoder.encode(np.ones(250))
    assert features.shape == (2, 3) and features.dtype == encoder.dtype and features.device.type == "cpu"
    assert not features.requires_grad and not any(p.requires_grad for p in encoder.network.parameters())
    weight = torch.ones(3, requires_grad=True)
    (features * weight).sum().backward()  # inference_mode's tensors would raise here
    torch.testing.assert_close(weight.grad, features.sum(0))


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(0), r"a recording of 0.000 s is too short: 0.00625 to 1 s are allowed"),
        (np.zeros(99), r"too short"),
        (np.zeros(16001), r"a recording of 1.000 s is too long"),
        (np.zeros((2, 200)), r"shape \(2, 200\) is not mono: mix its channels"),
        (np.array([0.0] * 199 + [math.nan]), r"samples that are not finite: write it again"),
    ],
)
def test_a_recording_that_cannot_be_heard_is_refused_in_one_line(wave: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        Steps().encode(wave)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("encoder 'steps': ")


def test_frames_refuses_what_encode_would_and_takes_the_ends() -> None:
    encoder = Steps()
    assert encoder.frames(100) == 1 and encoder.frames(16000) == 160
    for samples in (99, 16001):
        with pytest.raises(ValueError, match="too (short|long)"):
            encoder.frames(samples)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="device='cuda:0' is not on this machine: use device=cpu"):
        Steps(device="cuda:0")


def test_a_fingerprint_changes_with_every_weight_fact_and_dtype_and_with_nothing_else() -> None:
    first = Steps().fingerprint()
    assert Steps().fingerprint() == first
    changed = Steps()
    with torch.no_grad():
        changed.network.weight[2, 99] += 1e-6  # pyright: ignore[reportIndexIssue]
    others = [changed, Steps(shift=1), Steps(shift=2), Steps(nn.Linear(100, 3, dtype=torch.bfloat16))]
    assert len({first, *(encoder.fingerprint() for encoder in others)}) == 5


# --- strict loading -------------------------------------------------------------------------------------------------


def weights() -> dict[str, torch.Tensor]:
    return {"weight": torch.randn(3, 2), "bias": torch.randn(3)}


def test_weights_are_loaded_in_the_dtype_they_are_stored_in_or_the_one_asked_for() -> None:
    tensors = weights()
    assert torch.equal(build_network(lambda: nn.Linear(2, 3), tensors, "it").weight, tensors["weight"])
    half = build_network(lambda: nn.Linear(2, 3), tensors, "it", "bfloat16")
    assert torch.equal(half.weight, tensors["weight"].bfloat16())
    stored = {name: value.bfloat16() for name, value in tensors.items()}
    assert build_network(lambda: nn.Linear(2, 3), stored, "it").weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, r"it: 1 tensors are missing in the file \(bias\)"),
        ({"extra": torch.zeros(1)}, r"it: 1 tensors of the file are not the model's \(extra\)"),
        ({"weight": torch.zeros(2, 3)}, r"it: 1 tensors have another shape \(weight \(2, 3\) for \(3, 2\)\)"),
        ({"bias": torch.tensor([0, math.inf, 0])}, r"it: tensor bias has values that are not finite"),
        ({"bias": torch.zeros(3).bfloat16()}, r"it is stored in bfloat16, float32, not in one dtype: set dtype to"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {name: value for name, value in (weights() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        build_network(lambda: nn.Linear(2, 3), tensors, "it")


def test_a_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="it: dtype='int8' is not allowed: one of float32, bfloat16, float16"):
        build_network(lambda: nn.Linear(2, 3), weights(), "it", "int8")
