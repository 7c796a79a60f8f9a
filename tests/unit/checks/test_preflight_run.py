"""What a start can go on from, and where its Ray is."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from wavalign_ext.checkpoints import whole
from wavalign_ext.checks import preflight_run
from wavalign_ext.checks.preflight import ends_with_one_line
from wavalign_ext.config import ConfigError


def config(run: Path, **trainer: Any) -> Any:
    given = {"default_local_dir": str(run), "val_only": False, "resume_mode": "auto", "resume_from_path": None}
    return OmegaConf.create({"trainer": given | {"total_training_steps": 9} | trainer, "ray_kwargs": {"ray_init": {}}})


def saved(place: Path, step: int, **state: Any) -> Path:
    folder = whole.aside(place, step)
    (folder / "actor").mkdir()
    torch.save({}, folder / "data.pt")
    whole.write_state(folder, {"mixing": {}, **state})
    whole.publish(place, step)
    whole.set_latest(place, step)
    return whole.step_folder(place, step)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_run.record, "record", lambda _: {"reward.scale": [0, 1], "rollout.n": 8})


@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_another_run_s_checkpoint_is_refused(tmp_path: Path, recorded: None, mode: str) -> None:
    folder = saved(tmp_path, 3, run={"reward.scale": [1, 5], "rollout.n": 4})
    with pytest.raises(ConfigError, match=r"global_step_3 was made with another reward.scale: \[1, 5\] → \[0, 1\]"):
        preflight_run.check_resume(config(tmp_path, resume_mode=mode, resume_from_path=str(folder)))
    preflight_run.check_resume(config(tmp_path, resume_mode="disable"))


def test_what_may_change_is_said(tmp_path: Path, recorded: None, capsys: pytest.CaptureFixture) -> None:
    saved(tmp_path, 3, run={"reward.scale": [0, 1], "rollout.n": 4})
    preflight_run.check_resume(config(tmp_path))
    assert capsys.readouterr().out == f"wavalign: changed since {tmp_path}/global_step_3: rollout.n: 4 → 8\n"


def test_a_checkpoint_without_a_record_is_taken(tmp_path: Path, recorded: None) -> None:
    saved(tmp_path, 3)
    preflight_run.check_resume(config(tmp_path))
    preflight_run.check_resume(config(tmp_path / "none"))


def test_what_is_not_whole_is_refused_by_name(tmp_path: Path, recorded: None) -> None:
    folder = saved(tmp_path, 3)
    (folder / "data.pt").unlink()
    with pytest.raises(ConfigError, match="global_step_3 is not whole .*data.pt is missing"):
        preflight_run.check_resume(config(tmp_path))
    given = config(tmp_path, resume_mode="resume_path", resume_from_path=str(folder))
    with pytest.raises(ConfigError, match="trainer.resume_from_path='.*global_step_3': data.pt is missing"):
        preflight_run.check_resume(given)
    given.trainer.resume_from_path = str(tmp_path / "global_step_7")
    with pytest.raises(ConfigError, match="global_step_7' is not a folder"):
        preflight_run.check_resume(given)


def test_a_run_that_has_its_steps_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    saved(tmp_path, 9)
    with pytest.raises(SystemExit) as ended:
        preflight_run.stop_if_finished(config(tmp_path))
    assert ended.value.code == 0 and "raise it above 9" in capsys.readouterr().out
    preflight_run.stop_if_finished(config(tmp_path, total_training_steps=10))


def test_a_ray_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "auto", "local", ""):
            monkeypatch.setenv("RAY_ADDRESS", address)
            preflight_run.check_ray_address(config(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS=127.0.0.1:{port}: nothing answers there"):
        preflight_run.check_ray_address(config(tmp_path))
    given = config(tmp_path)
    given.ray_kwargs.ray_init.address = f"ray://127.0.0.1:{port}"
    with pytest.raises(ConfigError, match="ray_kwargs.ray_init.address=127.0.0.1"):
        preflight_run.check_ray_address(given)


class Panic(BaseException):
    """As libraries written in Rust raise one."""


@pytest.mark.parametrize(
    "error", [KeyError("weight"), Panic("index out of bounds"), AttributeError("x"), AssertionError()]
)
def test_no_exception_skips_the_preflight(error: BaseException) -> None:
    @ends_with_one_line
    def check() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        check()
    assert str(ended.value).startswith(f"wavalign: {type(error).__name__} in check ") and "\n" not in str(ended.value)


def test_ctrl_c_before_ray(capsys: pytest.CaptureFixture) -> None:
    @ends_with_one_line
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        check()
    assert ended.value.code == 130 and capsys.readouterr().err == "wavalign: stopped before Ray started\n"
