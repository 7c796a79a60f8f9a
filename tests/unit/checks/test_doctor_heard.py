"""``wavalign doctor`` on a model that hears through an encoder: the model with its layout, and the rows' features."""

from pathlib import Path
from typing import Any

import pytest
from ears_world import LAYOUT, build, write_rows
from omegaconf import OmegaConf

from wavalign_ext.checks import doctor
from wavalign_ext.checks.doctor import OK, DoctorContext
from wavalign_ext.checks.preflight_heard import MANAGER
from wavalign_ext.config import ConfigError, WavAlignConfig

WAV = {"layout": LAYOUT, "codec": {"type": "twin"}, "reward": {"terms": {"semantic": {"weight": 1.0}}}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("ears"))
    write_rows(folder, [(5,), (4, 12)])
    return folder


@pytest.fixture
def context(world: Path) -> DoctorContext:
    rows, wav = str(world / "rows.parquet"), {**WAV, "audio_root": str(world)}
    model = {"path": str(world / "model"), "trust_remote_code": False, "lora_rank": 0}
    part = {"agent": {"agent_loop_manager_class": MANAGER}, "temperature": 1.0}
    data = {"train_files": rows, "val_files": rows, "max_prompt_length": 128, "max_response_length": 48}
    config = {"actor_rollout_ref": {"model": model, "rollout": part}, "data": data, "wavalign": wav}
    return DoctorContext([], config=OmegaConf.create(config), wav=WavAlignConfig.from_mapping(wav))


def test_a_model_that_hears_is_found_with_its_layout(context: DoctorContext) -> None:
    found = {finding.name: finding for finding in doctor.check_model(context)}
    assert {name: finding.state for name, finding in found.items()} == {"model": OK, "layout": OK, "hearing": OK}
    assert found["model"].text.startswith("hearing_qwen2, ")
    assert found["hearing"].text == "by sensevoice, 32 numbers per vector, at <|context_of_audio|>"


def test_what_it_hears_is_held_against_its_layout(context: DoctorContext, monkeypatch: pytest.MonkeyPatch) -> None:
    wav = {**WAV, "layout": {**LAYOUT, "encoder": {**LAYOUT["encoder"], "size": 64}}}
    context.wav = WavAlignConfig.from_mapping(wav)
    with pytest.raises(ConfigError, match="has audio_feature_size=32, layout 'ears' 64: use the model's own layout"):
        list(doctor.check_model(context))  # examine() makes a finding of it


def test_the_rows_features_are_looked_at(context: DoctorContext, world: Path) -> None:
    list(doctor.check_model(context))
    counts: list[Any] = list(doctor.check_data(context))
    assert [finding.state for finding in counts] == [OK] and "rows.parquet 2 rows" in counts[0].text
    moved = world / "features" / "0_0.safetensors"
    moved.rename(moved.with_suffix(".gone"))
    try:
        with pytest.raises(ConfigError, match="row 0: features .*0_0.safetensors.* cannot be read"):
            list(doctor.check_data(context))
    finally:
        moved.with_suffix(".gone").rename(moved)
