"""A checkpoint says which run it is of; what may change is said, what may not is refused with both values."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from wavalign_ext.checkpoints.record import compare, data_print, model_print, record, weights_print
from wavalign_ext.config import ConfigError


def config(tmp_path: Path, **changes: Any) -> Any:
    tmp_path.mkdir(exist_ok=True)
    data, model = tmp_path / "train.parquet", tmp_path / "model"
    if not data.exists():
        data.write_bytes(b"rows" * 1000)
        model.mkdir()
        (model / "config.json").write_text("{}"), (model / "model.safetensors").write_bytes(b"1234")
    made = OmegaConf.create(
        {
            "wavalign": {
                "layout": "pocket",
                "codec": {"type": "mel_vq", "path": str(tmp_path)},
                "reward": {"scale": [1, 5], "terms": {"semantic": {"weight": 0.7}}},
                "watchdog": {"poll_interval_s": 5},
            },
            "actor_rollout_ref": {
                "model": {"path": str(model)},
                "rollout": {"n": 4, "temperature": 1.0},
                "actor": {"optim": {"lr": 1e-4}, "ppo_mini_batch_size": 8, "policy_loss": {"loss_mode": "vanilla"}},
            },
            "data": {"train_files": str(data), "train_batch_size": 8, "seed": 1},
        }
    )
    for key, value in changes.items():
        OmegaConf.update(made, key, value)
    return made


def test_the_same_run_is_the_same(tmp_path: Path) -> None:
    before = record(config(tmp_path))
    assert compare(before, record(config(tmp_path)), "step 3") == []
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "train.parquet").rename(moved / "rows.parquet")
    (tmp_path / "model").rename(moved / "model")
    now = config(
        moved.parent / "other",
        **{"data.train_files": [str(moved / "rows.parquet")], "actor_rollout_ref.model.path": str(moved / "model")},
    )
    assert compare(before, record(now), "step 3") == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("wavalign.reward.scale", [0, 1], r"another reward.scale: \[1, 5\] → \[0, 1\]"),
        ("wavalign.layout", "glm4_voice", "another layout: name 'pocket' → 'glm4_voice'"),
        ("wavalign.codec.type", "units", "another codec: type 'mel_vq' → 'units'"),
        ("actor_rollout_ref.model.path", "/no/such/model", "another model"),
        ("data.train_files", "/no/such/file", "another data"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, key: str, value: Any, told: str) -> None:
    before = record(config(tmp_path))
    with pytest.raises(ConfigError, match=rf"step 3 was made with {told}.*experiment_name=NAME"):
        compare(before, record(config(tmp_path, **{key: value})), "step 3")


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("actor_rollout_ref.rollout.n", 8, "rollout.n: 4 → 8"),
        ("wavalign.reward.terms.semantic.weight", 1.0, "reward.terms.semantic.weight: 0.7 → 1.0"),
        ("actor_rollout_ref.actor.optim.lr", 1e-5, "actor.optim.lr: 0.0001 → 1e-05"),
    ],
)
def test_what_may_change_is_said(tmp_path: Path, key: str, value: Any, line: str) -> None:
    before = record(config(tmp_path))
    assert compare(before, record(config(tmp_path, **{key: value})), "step 3") == [line]


def test_how_a_run_is_watched_is_no_part_of_it(tmp_path: Path) -> None:
    before = record(config(tmp_path))
    assert compare(before, record(config(tmp_path, **{"wavalign.watchdog.poll_interval_s": 1})), "step 3") == []


def test_fingerprints_see_what_changed(tmp_path: Path) -> None:
    config(tmp_path)
    data, model = tmp_path / "train.parquet", tmp_path / "model"
    prints = {data_print([str(data)])[0], weights_print(str(model))}
    named = model_print(str(model))
    data.write_bytes(b"rowz" + b"rows" * 999)
    size = (model / "model.safetensors").stat().st_size
    (model / "model.safetensors").write_bytes(b"9" * size)  # as large, and another one
    assert not prints & {data_print([str(data)])[0], weights_print(str(model))} and model_print(str(model)) == named
    (model / "model.safetensors").write_bytes(b"9" * (size + 1))
    assert model_print(str(model)) != named
    assert model_print("org/name") == "org/name" and data_print(["hdfs://x"]) == ["hdfs://x"]
