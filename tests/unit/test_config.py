"""The ``wavalign`` node: its types, its defaults, and what importing it costs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from wavalign_ext.config import ConfigError, WavAlignConfig
from wavalign_ext.schema import Section, allowed, sections

BASE = Path(__file__).parents[2] / "recipes/wavalign_recipes/wavalign/base.yaml"
# What base.yaml fills with the embedded default's parts, and has no default of its own.
POCKET = {"layout", "codec", "input_codec", "audio_root", "reward.terms"}


def build(**node: Any) -> WavAlignConfig:
    return WavAlignConfig.from_mapping({"layout": "pocket", "codec": {"type": "mel_vq"}, **node})


def test_importing_it_imports_neither_torch_nor_verl() -> None:
    code = (
        "import sys, wavalign_ext.config, wavalign_ext.verl_keys; print({'torch', 'verl', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_recipe_s_defaults_are_ours() -> None:
    written: Any = OmegaConf.to_container(OmegaConf.load(BASE).wavalign, resolve=False)
    keys = {key: field for key, field in sections(WavAlignConfig) if key not in POCKET}
    for key, field in keys.items():
        value = written
        for name in key.split("."):
            assert name in value, f"base.yaml lacks wavalign.{key}"
            value = value[name]
        if not isinstance(field.default, Section):
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert value == default and isinstance(value, bool) == isinstance(default, bool), key
    assert WavAlignConfig.from_mapping(written | {"layout": "pocket"}).mixing == build().mixing


def test_every_key_says_what_it_is_for() -> None:
    """The documentation is made of these."""
    keys = dict(sections(WavAlignConfig))
    assert [key for key, field in keys.items() if not field.description] == []
    assert len(keys) > 35
    assert allowed(keys["mixing.lambda_max"]) == "a number in [0, 1]"
    assert allowed(keys["mixing.ema_decay"]) == "a number in [0, 1)"
    assert allowed(keys["mixing.reward_sharpness"]) == "a number > 0, or null"
    assert allowed(keys["preference.tokens"]) == "one of all, text, speech"
    assert allowed(keys["audio_dump.max_answers"]) == "an integer ≥ 0"


def test_whole_numbers_are_numbers() -> None:
    wav = build(mixing={"lambda_max": 1}, reward={"scale": [0, 10]}, watchdog={"step_timeout_s": 7200})
    assert (wav.mixing.lambda_max, wav.reward.scale, wav.watchdog.step_timeout_s) == (1.0, (0.0, 10.0), 7200.0)


def test_a_section_cannot_be_changed_later() -> None:
    with pytest.raises(ValueError, match="frozen"):
        build().kl.text = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mixing", "preference", "anchor"),
    [
        ({}, True, True),
        ({"lambda_max": 0}, False, True),
        ({"type": "fixed", "value": 0}, False, True),
        ({"type": "fixed", "value": 1}, True, False),
    ],
)
def test_a_loss_without_weight_needs_no_tokens(mixing: dict, preference: bool, anchor: bool) -> None:
    wav = build(mixing=mixing)
    assert (wav.uses_preference, wav.uses_anchor) == (preference, anchor)
    nothing = {"text_weight": 0, "speech_weight": 0}
    for name, used in (("preference", preference), ("anchor", anchor)):
        if used:
            with pytest.raises(ConfigError, match=f"wavalign.{name}.text_weight=0.0 .*no token has a weight"):
                build(mixing=mixing, **{name: nothing})
        else:
            build(mixing=mixing, **{name: nothing})


def test_a_long_value_is_cut_and_stays_on_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        build(kl="line\n" * 1000)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)
