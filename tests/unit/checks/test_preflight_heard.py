"""What goes wrong with a user who is heard through an encoder ends in one line, before Ray starts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ears_world import LAYOUT, SIZE, build
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoTokenizer, Qwen2Config

from wavalign_ext.checks.preflight_heard import MANAGER, HeardRows, check_hearing
from wavalign_ext.config import ConfigError
from wavalign_ext.speech.heard import save_features
from wavalign_ext.speech.layout import load_layout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("ears"))


@pytest.fixture(scope="module")
def layout(world: Path) -> Any:
    return load_layout(LAYOUT).resolve(AutoTokenizer.from_pretrained(world / "model"))


def config(**model: Any) -> Any:
    node = {"path": "MODEL", "lora_rank": 0, "target_modules": "all-linear", "exclude_modules": None, "lora": {}}
    rollout = {"agent": {"agent_loop_manager_class": MANAGER}}
    actor = {"ulysses_sequence_parallel_size": 1}
    return OmegaConf.create({"actor_rollout_ref": {"model": node | model, "rollout": rollout, "actor": actor}})


def test_a_model_and_its_layout_belong_together(world: Path, layout: Any) -> None:
    found = AutoConfig.from_pretrained(world / "model")
    check_hearing(config(), layout, found)
    for name, value in (("audio_token_id", 7), ("audio_feature_size", 9), ("audio_most", 1), ("audio_encoder", "x")):
        other = AutoConfig.from_pretrained(world / "model", **{name: value})
        with pytest.raises(
            ConfigError, match=f"the model 'MODEL' has {name}={value!r}, layout 'ears' .*: use the model's own"
        ):
            check_hearing(config(), layout, other)
    with pytest.raises(ConfigError, match=r"hears through an encoder, the model 'MODEL' \(qwen2\) speech tokens"):
        check_hearing(config(), layout, Qwen2Config())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actor.ulysses_sequence_parallel_size", 2, "ulysses_sequence_parallel_size=2 .*placeholders would lose"),
        ("rollout.agent.agent_loop_manager_class", None, "wavalign_ext.rollout.hearing.HearingManager"),
        ("model.lora_rank", 8, "exclude_modules=.*'.\\*audio_projection.\\*'"),
    ],
)
def test_a_key_that_cannot_go_with_it(world: Path, layout: Any, key: str, value: Any, message: str) -> None:
    changed = config()
    OmegaConf.update(changed, f"actor_rollout_ref.{key}", value)
    with pytest.raises(ConfigError, match=message):
        check_hearing(changed, layout, AutoConfig.from_pretrained(world / "model"))


def test_lora_leaves_the_projector_out_and_is_merged(world: Path, layout: Any) -> None:
    found, out = AutoConfig.from_pretrained(world / "model"), ".*audio_projection.*"
    with pytest.raises(ConfigError, match="lora.merge=true"):
        check_hearing(config(lora_rank=8, exclude_modules=out), layout, found)
    check_hearing(config(lora_rank=8, exclude_modules=out, lora={"merge": True}), layout, found)
    check_hearing(config(lora_rank=8, target_modules=["q_proj"], lora={"merge": True}), layout, found)


def ids_of(layout: Any, *frames: int) -> list[int]:
    return [1, *(i for count in frames for i in (layout.begin_id, *[layout.user_speech_start] * count, layout.end_id))]


def test_features_are_those_of_the_prompt(tmp_path: Path, layout: Any) -> None:
    def write(name: str, frames: int, size: int = SIZE, encoder: str = "sensevoice", weights: str = "f") -> dict:
        save_features(tmp_path / name, torch.zeros(frames, size), encoder, weights)
        return {"heard_features": [name]}

    first, second = write("first", 5), write("second", 7)
    both = {"heard_features": [*first["heard_features"], *second["heard_features"]]}
    rows = HeardRows(layout, str(tmp_path))
    rows(first, ids_of(layout, 5), "row 0")
    rows(both, ids_of(layout, 5, 7), "row 1")
    for row, frames, message in (
        ({}, (5,), "row 2: no heard_features, which layout 'ears' hears: run wavalign prepare"),
        (first, (4,), r"row 2: the prompt has \[4\] placeholders .* for vectors of \[5\] frames"),
        (both, (7, 5), r"has \[7, 5\] placeholders"),
        (both, (12,), r"has \[12\] placeholders"),
        ({"heard_features": ["gone"]}, (5,), "row 2: .*gone.*cannot be read.*, or set wavalign.audio_root"),
        (write("other", 5, encoder="whisper"), (5,), "by the encoder 'whisper' .32 numbers.*hears by 'sensevoice'"),
        (write("wide", 5, size=9), (5,), r"\(9 numbers per vector\)"),
        (write("empty", 0), (), "a recording of 0 vectors, 1 to 64 are allowed"),
        (write("long", 65), (65,), "a recording of 65 vectors, 1 to 64 are allowed"),
        (
            write("weights", 5, weights="g"),
            (5,),
            "by other weights of 'sensevoice' than row 0: prepare all",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            rows(row, ids_of(layout, *frames), "row 2")


def test_features_for_a_layout_that_hears_tokens(layout: Any) -> None:
    from dataclasses import replace

    tokens = replace(layout, layout=replace(layout.layout, user_speech=None, encoder=None))
    HeardRows(tokens, None)({}, [1], "row 0")
    with pytest.raises(ConfigError, match="row 0: heard_features are for a model that hears through an encoder"):
        HeardRows(tokens, None)({"heard_features": ["a"]}, [1], "row 0")
