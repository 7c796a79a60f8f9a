"""Which checkpoints a run keeps, and which one it goes on from, without workers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from wavalign_ext.checkpoints import whole
from wavalign_ext.trainer.saving import Saving


class Trainer:
    """What Saving uses of verl's trainer."""

    def __init__(self, fails: bool = False) -> None:
        self.told: list[dict[str, Any]] = []
        self.fails = fails
        self.actor_rollout_wg = SimpleNamespace(save_checkpoint=self.write)
        self.checkpoint_callback = SimpleNamespace(on_save=lambda **given: self.told.append(given))

    def write(self, folder: str, remote: None, step: int, max_ckpt_to_keep: None) -> None:
        Path(folder).mkdir()
        torch.save({"step": step}, Path(folder) / "model_world_size_1_rank_0.pt")
        if self.fails:
            raise OSError(28, "No space left on device")


def saving(run: Path, most: int | None = 2, **more: Any) -> Saving:
    return Saving(OmegaConf.create({"default_local_dir": str(run), "max_actor_ckpt_to_keep": most, **more}))


def save(keeper: Saving, step: int, **options: Any) -> Trainer:
    trainer = Trainer(**options)
    keeper.save(trainer, step, {"place": step}, {"mixing": {"average": 0.5}, "health": {}})
    return trainer


def test_a_save_is_whole_named_and_told(tmp_path: Path) -> None:
    trainer = save(saving(tmp_path), 3)
    assert whole.newest_whole(tmp_path) == (3, [])
    assert torch.load(tmp_path / "global_step_3" / "data.pt") == {"place": 3}
    assert trainer.told[0]["checkpoint_dir"] == str(tmp_path / "global_step_3") and trainer.told[0]["global_step"] == 3


def test_a_save_that_fails_leaves_the_last_one_and_nothing_else(tmp_path: Path) -> None:
    keeper = saving(tmp_path, most=1)
    save(keeper, 3)
    with pytest.raises(OSError, match="No space left"):
        save(keeper, 6, fails=True)
    assert whole.newest_whole(tmp_path) == (3, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step_3", whole.TRACKER]


def test_what_an_earlier_start_saved_counts(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(saving(tmp_path), step)  # each by a start of its own
    assert whole.saved_steps(tmp_path) == [6, 8]


@pytest.mark.parametrize("given", [{"most": 1}, {"most": None, "remove_previous_ckpt_in_save": True}])
def test_with_one_kept_the_one_before_stays_until_the_next_step_was_healthy(tmp_path: Path, given: dict) -> None:
    keeper = saving(tmp_path, **given)
    save(keeper, 2), save(keeper, 4)
    assert whole.saved_steps(tmp_path) == [2, 4]
    keeper.confirm()
    assert whole.saved_steps(tmp_path) == [4]


def test_all_are_kept_where_no_number_is_given(tmp_path: Path) -> None:
    keeper = saving(tmp_path, most=None)
    for step in (2, 4, 6):
        save(keeper, step)
        keeper.confirm()
    assert whole.saved_steps(tmp_path) == [2, 4, 6]


def test_the_checkpoint_of_the_step_that_went_wrong_is_not_gone_on_from(tmp_path: Path) -> None:
    keeper = saving(tmp_path)
    save(keeper, 2), save(keeper, 4)
    assert keeper.doubt(first_unhealthy=5) == 2 and whole.latest_step(tmp_path) == 2
    assert keeper.to_resume("auto", None) == str(tmp_path / "global_step_2")


def test_an_earlier_checkpoint_is_not_doubted(tmp_path: Path) -> None:
    keeper = saving(tmp_path)
    save(keeper, 2), save(keeper, 4)
    assert keeper.doubt(first_unhealthy=6) == 4 and whole.latest_step(tmp_path) == 4


def test_a_resume_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    keeper = saving(tmp_path)
    save(keeper, 2), save(keeper, 4)
    (tmp_path / "global_step_4" / "data.pt").unlink()
    whole.aside(tmp_path, 6)
    assert keeper.to_resume("auto", None) == str(tmp_path / "global_step_2")
    assert (
        "global_step_4 is not whole and is not used: data.pt is missing; going on from step 2"
        in capsys.readouterr().out
    )
    assert not (tmp_path / whole.ASIDE).exists()


def test_a_path_is_taken_as_it_is_given_or_refused(tmp_path: Path) -> None:
    keeper = saving(tmp_path)
    save(keeper, 2)
    path = str(tmp_path / "global_step_2")
    assert keeper.to_resume("resume_path", path) == path and keeper.to_resume("disable", path) is None
    (tmp_path / "global_step_2" / "data.pt").unlink()
    with pytest.raises(whole.CheckpointError, match="trainer.resume_from_path=.*global_step_2: data.pt is missing"):
        keeper.to_resume("resume_path", path)
