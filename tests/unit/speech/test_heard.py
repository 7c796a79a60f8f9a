"""Layouts of models that hear through an encoder, and the files of what they hear."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from twins import build_tokenizer

from wavalign_ext.speech.heard import FeatureFile, load_features, multi_modal_inputs, read_header, save_features
from wavalign_ext.speech.layout import BOUNDARY, SPEECH, TEXT, Layout, LayoutError, load_layout
from wavalign_ext.speech.turn_grammar import NEVER, kinds_of_ids

FACTS = {"type": "sensevoice", "size": 512, "most": 504, "placeholder": "<|context_of_audio|>"}
NODE: dict[str, Any] = {"name": "plus", "user_speech": "continuous", "encoder": FACTS}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tokenizer("vita_audio_plus_vanilla", tmp_path_factory.mktemp("plus"))


def test_the_placeholder_is_the_user_s_speech(tokenizer: Any) -> None:
    """vita_audio/tokenizer_sensevoice_glm4voice.py of VITA-Audio adds its tokens in this order, after Qwen2.5's."""
    layout = load_layout("vita_audio_plus_vanilla").resolve(tokenizer, 168072)
    assert (layout.user_speech_start, layout.user_speech_end) == (151676, 151677)
    assert (layout.begin_id, layout.end_id, layout.speech_start) == (151674, 151675, 151686)
    assert layout.modality([151676, 151686, 151674, 11]).tolist() == [SPEECH, SPEECH, BOUNDARY, TEXT]
    assert kinds_of_ids(layout, 151690)[151676] == NEVER
    assert "the user's speech in a response" in layout.split([11, 151676]).errors[0]


def test_a_prompt_has_one_placeholder_per_vector(tokenizer: Any) -> None:
    layout = load_layout("vita_audio_plus_vanilla").resolve(tokenizer)
    found = tokenizer.encode(layout.user_speech_prompt([0] * 171), add_special_tokens=False)
    assert found == [*tokenizer.encode("\n"), 151674, *[151676] * 171, 151675]
    message = {"role": "user", "content": "<|context_of_audio|>" * 3}
    with pytest.raises(LayoutError, match=r"row 1: the user's speech is not between <\|begin_of_audio\|>"):
        layout.check_prompt([message], tokenizer, "row 1")


@pytest.mark.parametrize("name", ["vita_audio_plus_vanilla", "step_audio2_mini"])
def test_an_encoder_is_registered(name: str) -> None:
    from wavalign_ext.speech.encoders import base

    facts = load_layout(name).encoder
    assert facts is not None and facts.type in base._ENCODERS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": None}, "continuous and encoder belong together"),
        ({"user_speech": None}, "continuous and encoder belong together"),
        ({"encoder": "sensevoice"}, "encoder='sensevoice' is malformed: give type, size and most"),
        ({"encoder": {**FACTS, "trainable": True}}, "encoder: trainable is not supported: the projector learns"),
        ({"encoder": {**FACTS, "sise": 1}}, "encoder: key 'sise' is not known: its keys are type, size"),
        ({"encoder": {**FACTS, "size": 0}}, "encoder: size=0: give a whole number above 0"),
        ({"encoder": {**FACTS, "most": 1.5}}, "encoder: most=1.5"),
        ({"encoder": {**FACTS, "placeholder": ""}}, "placeholder='' is no name"),
        ({"encoder": {**FACTS, "placeholder": "<|audio_{}|>"}}, "one token, without braces"),
    ],
)
def test_what_is_no_encoder_ends_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout.from_mapping(NODE | changes)


def test_a_placeholder_that_the_tokenizer_lacks(tokenizer: Any) -> None:
    layout = load_layout("vita_audio_plus_vanilla")
    assert layout.encoder is not None
    other = replace(layout, encoder=replace(layout.encoder, placeholder="<|no|>"))
    with pytest.raises(LayoutError, match=r"encoder: the tokenizer has no token '<\|no\|>'"):
        other.resolve(tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    first, second = torch.randn(7, 4).to(dtype), torch.randn(2, 4).to(dtype)
    save_features(tmp_path / "ab" / "1.safetensors", first, "sensevoice", "f00")
    save_features(tmp_path / "ab" / "2.safetensors", second, "sensevoice", "f00")
    assert read_header(tmp_path / "ab" / "1.safetensors") == FeatureFile(7, 4, "sensevoice", "f00")
    heard = load_features(["ab/2.safetensors", "ab/1.safetensors"], str(tmp_path))
    assert torch.equal(heard[0], second) and torch.equal(heard[1], first) and heard[0].dtype == dtype
    assert torch.equal(multi_modal_inputs(heard)["audio_features"], torch.cat([second, first]))
    assert load_features(None, None) == [] and multi_modal_inputs([]) == {}
    assert not list(tmp_path.rglob("*.part"))


def test_what_is_no_feature_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name in ("bad.safetensors", "gone.safetensors"):
        with pytest.raises(ValueError, match=f"{name}.*cannot be read.*run wavalign prepare again"):
            read_header(tmp_path / name)
