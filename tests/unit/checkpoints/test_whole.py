"""Checkpoints appear whole or not at all; a resume takes the newest whole one; old ones go, whoever saved them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from wavalign_ext.checkpoints import whole


def save(run: Path, step: int) -> Path:
    folder = whole.aside(run, step)
    (folder / "actor" / "huggingface").mkdir(parents=True)
    for name in ("data.pt", "actor/model_world_size_1_rank_0.pt", "actor/optim_world_size_1_rank_0.pt"):
        torch.save({"step": step, "values": torch.zeros(100)}, folder / name)
    (folder / "actor" / "huggingface" / "config.json").write_text("{}")
    whole.write_state(folder, {"mixing": {"average": step / 10}})
    whole.publish(run, step)
    whole.set_latest(run, step)
    return whole.step_folder(run, step)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (2, 4, 10):
        save(tmp_path, step)
    return tmp_path


def test_a_whole_run(run: Path) -> None:
    assert whole.newest_whole(run) == (10, []) and whole.latest_step(run) == 10
    assert sorted(path.name for path in run.iterdir()) == sorted(
        ["global_step_2", "global_step_4", "global_step_10", whole.TRACKER]
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


OPTIMISER = "actor/optim_world_size_1_rank_0.pt"
DAMAGE = [
    (OPTIMISER, cut, r"optim_world_size_1_rank_0.pt has \d+ bytes of \d+"),
    (OPTIMISER, zeroed, "optim_world_size_1_rank_0.pt is damaged"),
    (OPTIMISER, Path.unlink, "optim_world_size_1_rank_0.pt is missing"),
    ("data.pt", Path.unlink, "data.pt is missing"),
    ("actor", shutil.rmtree, "actor/.* is missing"),
    ("wavalign.json", Path.unlink, "it has no wavalign.json, which is written last"),
    ("wavalign.json", cut, "wavalign.json' is damaged"),
    ("wavalign.json", lambda path: path.write_text('{"mixing"'), "wavalign.json' is damaged"),
]


@pytest.mark.parametrize(("name", "damage", "told"), DAMAGE)
def test_one_that_is_not_whole_is_named_and_the_one_before_is_taken(run: Path, name: str, damage, told: str) -> None:
    import re

    damage(whole.step_folder(run, 10) / name)
    step, (line,) = whole.newest_whole(run)
    assert step == 4 and "global_step_10 is not whole and is not used" in line and re.search(told, line)


def test_the_only_one_that_is_not_whole_is_no_fresh_start(tmp_path: Path) -> None:
    save(tmp_path, 3)
    cut(tmp_path / "global_step_3" / "data.pt")
    with pytest.raises(
        whole.CheckpointError, match="global_step_3 is not whole .*start anew with trainer.experiment_name"
    ):
        whole.newest_whole(tmp_path)


def test_a_latest_that_is_gone_is_said(run: Path) -> None:
    shutil.rmtree(whole.step_folder(run, 10))
    assert whole.newest_whole(run) == (4, [])
    shutil.rmtree(whole.step_folder(run, 4)), shutil.rmtree(whole.step_folder(run, 2))
    with pytest.raises(whole.CheckpointError, match="names step 10, and .*global_step_10 is not there"):
        whole.newest_whole(run)


def test_latest_is_obeyed_and_without_it_the_newest_counts(run: Path) -> None:
    whole.set_latest(run, 4)
    assert whole.newest_whole(run)[0] == 4
    (run / whole.TRACKER).unlink()
    assert whole.newest_whole(run)[0] == 10
    (run / whole.TRACKER).write_text("step ten")
    with pytest.raises(whole.CheckpointError, match="latest_checkpointed_iteration.txt='step ten' is not allowed"):
        whole.newest_whole(run)


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "global_step_x").mkdir()
    assert whole.newest_whole(tmp_path) == (None, [])


def test_a_stock_checkpoint_is_taken_if_its_data_go_on(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    (folder / "wavalign.json").unlink()
    assert whole.problem(folder) is None
    (folder / "data.pt").unlink()
    assert whole.problem(folder) == "data.pt is missing"


def test_one_of_an_earlier_version_lists_no_files(run: Path) -> None:
    path = whole.step_folder(run, 10) / "wavalign.json"
    path.write_text(json.dumps({"mixing": {"average": 1.0}}))
    assert whole.problem(path.parent) is None


def test_what_a_save_left_half_done_is_not_seen(run: Path) -> None:
    folder = whole.aside(run, 12)
    (folder / "actor").mkdir()
    assert whole.newest_whole(run) == (10, []) and whole.saved_steps(run) == [2, 4, 10]
    whole.discard_unfinished(run)
    assert not (run / whole.ASIDE).exists()


def test_a_step_saved_again_replaces_the_old_one(run: Path) -> None:
    (whole.step_folder(run, 4) / "old").touch()
    save(run, 4)
    assert not (whole.step_folder(run, 4) / "old").exists() and whole.problem(whole.step_folder(run, 4)) is None


@pytest.mark.parametrize(("keep", "never", "left"), [(2, None, [4, 10]), (1, 2, [2, 10]), (9, None, [2, 4, 10])])
def test_rotation(run: Path, keep: int, never: int | None, left: list[int]) -> None:
    whole.rotate(run, keep, never)
    assert whole.saved_steps(run) == left
