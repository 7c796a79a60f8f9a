"""GLM-4-Voice's codec: weights that are the file's, equal codes in two processes, and what it asks for when made."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import glm4_checkout
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wavalign_ext.checkpoints.strict_loading import Weights, check
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.speech.codecs.imports import missing_packages, names_in


def buzz(seconds: float, rate: int = 22050) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return (0.2 * sum(np.sin(2 * np.pi * 140 * n * t * (1 + t)) / n for n in range(1, 8))).astype(np.float32)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of another test's checkout are forgotten."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = ("speech_tokenizer", "speech_tokenizer.modeling_whisper", "speech_tokenizer.configuration_whisper")
    for name in (*names, "flow_inference"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in (*names, "flow_inference"):
        sys.modules.pop(name, None)


@pytest.fixture
def glm(tmp_path: Path, clean: None) -> Path:
    return glm4_checkout.build(tmp_path)


def encoder_file(glm: Path) -> Path:
    return glm / "glm-4-voice-tokenizer" / "model.safetensors"


def test_the_encoder_is_the_file_s_where_from_pretrained_makes_it_random(glm: Path) -> None:
    saved = Weights([encoder_file(glm)])
    silent = glm4_checkout.encoder_class(glm).from_pretrained(encoder_file(glm).parent)
    with pytest.raises(ValueError, match="tensors of 10 are not what the file says"):
        check(silent, saved, "from_pretrained")
    codec: Any = load_codec({"type": "glm4_voice", "path": str(glm)})
    model, _ = codec._encoder
    assert all(torch.equal(model.state_dict()[name], saved[name]) for name in saved)
    assert torch.equal(model.ramp, torch.arange(8) / 8)  # computed in the constructor, in no file
    assert not model.training


def test_two_processes_give_equal_codes(glm: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wave.npy", buzz(2.0))
    code = (
        "import sys, numpy; from wavalign_ext.speech.codecs import load_codec\n"
        "print(load_codec({'type': 'glm4_voice', 'path': sys.argv[1]}).encode(numpy.load(sys.argv[2])))"
    )
    arguments = [sys.executable, "-c", code, str(glm), str(tmp_path / "wave.npy")]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    codes = load_codec({"type": "glm4_voice", "path": str(glm)}).encode(buzz(2.0))
    assert str(codes) == said.strip() and len(set(codes)) > 3


def test_a_file_of_the_whole_whisper_is_read_as_the_published_loader_does(tmp_path: Path, clean: None) -> None:
    root = glm4_checkout.build(tmp_path, whole=True)
    names = set(Weights([encoder_file(root)]))
    assert {"model.encoder.layer_norm.weight", "model.encoder.layers.2.weight"} <= names
    codec: Any = load_codec({"type": "glm4_voice", "path": str(root)})
    model, _ = codec._encoder
    assert len(model.layers) == 2 and not hasattr(model, "layer_norm")
    assert len(codec.encode(buzz(1.0))) == 13


def spoil(glm: Path, **changes: Any) -> None:
    """Tensors by name with _ for the dots; None takes one out."""
    tensors: dict[str, Any] = load_file(encoder_file(glm)) | {k.replace("__", "."): v for k, v in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, encoder_file(glm))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv1__weight": None}, r"1 tensors are missing in the file \(conv1.weight\): download"),
        ({"conv3__weight": torch.ones(2)}, r"1 tensors of the file are not the model's \(conv3.weight\): download"),
        ({"conv1__bias": torch.ones(7)}, r"1 tensors have another shape \(conv1.bias \(7,\) for \(8,\)\): download"),
    ],
)
def test_a_tensor_that_is_missing_extra_or_of_another_shape_is_named(glm: Path, changes: Any, message: str) -> None:
    spoil(glm, **changes)
    with pytest.raises(ValueError, match=rf"codec 'glm4_voice': '.*glm-4-voice-tokenizer': {message}"):
        load_codec({"type": "glm4_voice", "path": str(glm)}).encode(buzz(1.0))


def test_a_truncated_file_is_named(glm: Path) -> None:
    encoder_file(glm).write_bytes(encoder_file(glm).read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors' cannot be read: .*: download|; download"):
        load_codec({"type": "glm4_voice", "path": str(glm)}).encode(buzz(1.0))
    flow = glm / "glm-4-voice-decoder" / "flow.pt"
    flow.write_bytes(flow.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"flow.pt' cannot be read: .*; download"):
        load_codec({"type": "glm4_voice", "path": str(glm)}).decode([1])


def test_it_goes_through_the_user_s_checkout(glm: Path) -> None:
    codec: Any = load_codec({"type": "glm4_voice", "path": str(glm), "device": "cpu"})
    assert (codec.sample_rate, codec.frame_rate, codec.codebook_size) == (22050, 12.5, 16384)
    assert len(codec.encode(buzz(2.0))) == 25
    assert len(codec.encode(buzz(32.0))) == 400  # in two pieces
    assert codec.encode(np.zeros(0, np.float32)) == []
    torch.manual_seed(3)
    state, python, numpy_ = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    wave = codec.decode([1, 2, 3])
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert np.random.get_state()[1].tolist() == numpy_
    assert wave.shape == (3 * 1764,) and wave.dtype == np.float32
    np.testing.assert_array_equal(wave, codec.decode([1, 2, 3]))
    assert codec._speaker.scratch_configs == {}
    assert codec.decode([]).shape == (0,)
    with pytest.raises(ValueError, match="code 16384 is out of range"):
        codec.decode([16384])


def test_decoding_on_the_cpu_touches_none_of_the_node_s_gpus(glm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this makes a CUDA context")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("_lazy_init", "current_device", "get_rng_state", "set_rng_state", "manual_seed"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    codec = load_codec({"type": "glm4_voice", "path": str(glm)})
    assert codec.decode([1, 2]).shape == (2 * 1764,) and len(codec.encode(buzz(1.0))) == 13


def test_a_decoder_that_loads_something_else_is_refused(glm: Path) -> None:
    code = glm / "GLM-4-Voice" / "flow_inference.py"
    code.write_text(
        code.read_text().replace("    def offline", "        self.hift.bias.data += 1e-6\n\n    def offline")
    )
    with pytest.raises(ValueError, match=r"hift.pt': 1 tensors of 2 are not what the file says \(bias\)"):
        load_codec({"type": "glm4_voice", "path": str(glm)}).decode([1])
    torch.save({"weight": torch.ones(4, 4)}, glm / "glm-4-voice-decoder" / "hift.pt")
    with pytest.raises(ValueError, match=r"its decoder does not load: .*[Mm]issing key.*bias"):
        load_codec({"type": "glm4_voice", "path": str(glm)}).decode([1])


def test_a_part_that_is_missing_is_refused_when_it_is_made(glm: Path) -> None:
    def refusal(**arguments: Any) -> str:
        with pytest.raises((ValueError, ImportError)) as caught:
            load_codec({"type": "glm4_voice", "path": str(glm), **arguments})
        return str(caught.value)

    assert "no GLM-4-Voice/speech_tokenizer/modeling_whisper.py: check out" in refusal(path="/no/such")
    hift = glm / "glm-4-voice-decoder" / "hift.pt"
    kept = hift.read_bytes()
    hift.unlink()
    assert "has no glm-4-voice-decoder/hift.pt: download" in refusal()
    blind = load_codec({"type": "glm4_voice", "path": str(glm), "decoder": False})  # enough for prepare
    with pytest.raises(ValueError, match="decoder=False: leave that out"):
        blind.decode([1])
    hift.write_bytes(kept)
    (glm / "glm-4-voice-tokenizer" / "config.json").unlink()
    assert "has no glm-4-voice-tokenizer/config.json: download" in refusal()


def test_every_package_that_decoding_imports_and_that_is_missing_is_named_at_once(glm: Path) -> None:
    code = glm / "GLM-4-Voice"
    speech = code / "flow_inference.py"
    speech.write_text("import no_such_hyper\nfrom cosyvoice.flow import flow\n" + speech.read_text())
    (code / "cosyvoice" / "flow").mkdir()
    (code / "cosyvoice" / "__init__.py").write_text("")
    (code / "cosyvoice" / "flow" / "flow.py").write_text(
        "import torch, os.path\nfrom matcha.utils.pylogger import get_pylogger\n"
        "def train():\n    import no_such_trainer\n"
        "try:\n    import no_such_option\nexcept ImportError:\n    pass\n"
    )
    matcha = code / "third_party" / "Matcha-TTS" / "matcha"
    (matcha / "utils").mkdir()
    (matcha / "utils" / "__init__.py").write_text("from .paths import root\n")  # it runs before pylogger
    (matcha / "utils" / "paths.py").write_text("import no_such_download\n")
    (matcha / "utils" / "pylogger.py").write_text("from no_such_light.utilities import rank\n")
    (glm / "glm-4-voice-decoder" / "config.yaml").write_text(
        "hift: !new:cosyvoice.hifigan.Hift\nx: !new:no_such_conf.D\n"
    )
    (code / "cosyvoice" / "hifigan.py").write_text("import no_such_window\n")
    names = "no_such_conf no_such_download no_such_hyper no_such_light no_such_window"
    with pytest.raises(ImportError, match=rf"are not installed, .*: pip install {names}$"):
        load_codec({"type": "glm4_voice", "path": str(glm)})
    load_codec({"type": "glm4_voice", "path": str(glm), "decoder": False})
    assert not any(name.startswith("cosyvoice") for name in sys.modules)  # nothing was imported to know it


def test_names_that_differ_on_pypi_are_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "hydra" else object())
    (tmp_path / "start.py").write_text("import hydra.core\n")
    assert missing_packages([tmp_path], ["start"]) == ["hydra-core"]
    assert names_in("a: !new:b.C\n  d: !apply:e.f [1]\nx: !ref <y>") == ["b.C", "e.f"]
