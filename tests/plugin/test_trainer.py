"""Parts of the trainer that need no workers: what it resumes from, what it samples with, what it watches."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import verl  # noqa: F401  (loads the plugin)
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1 import get_trainer_cls

from wavalign_ext.checks.preflight import Preflight
from wavalign_ext.config import HealthConfig, WatchdogConfig
from wavalign_ext.method.mixing import MixingController
from wavalign_ext.trainer.health import Health


def resumed(path: Path) -> MixingController:
    trainer = SimpleNamespace(mixing=MixingController(), health=Health(HealthConfig()), global_steps=3)
    get_trainer_cls("wavalign")._load_mixing(trainer, str(path))  # pyright: ignore[reportAttributeAccessIssue]
    return trainer.mixing


def test_a_checkpoint_of_ours_goes_on_with_its_average(tmp_path: Path) -> None:
    path = tmp_path / "wavalign.json"
    path.write_text(json.dumps({"mixing": {"average": 0.25}}))
    assert resumed(path).average == 0.25


def test_a_stock_checkpoint_goes_on_with_a_new_average_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert resumed(tmp_path / "wavalign.json").average is None
    line = capsys.readouterr().out
    assert line.startswith("wavalign: WARNING: ") and line.count("\n") == 1
    assert "step 3 was not saved by this trainer" in line and "the average of λ starts anew" in line


@pytest.mark.parametrize("text", ["", "{", "{}", '{"mixing": null}'])
def test_a_damaged_one_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "wavalign.json").write_text(text)
    with pytest.raises(ValueError, match="wavalign.json' is damaged .*resume from another step, or delete it"):
        resumed(tmp_path / "wavalign.json")


@pytest.mark.parametrize(
    ("node", "seeded"), [({}, True), ({"seeded_sampling": True}, True), ({"seeded_sampling": False}, False)]
)
def test_sampling_is_seeded_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, node: dict, seeded: bool) -> None:
    from wavalign_ext.rollout.agent_loop import SpokenAgentLoop, request_seed

    given: list[dict[str, Any]] = []

    async def run(self: Any, sampling_params: dict[str, Any], **_: Any) -> None:
        given.append(sampling_params)

    monkeypatch.setattr(SingleTurnAgentLoop, "run", run)
    loop: Any = SpokenAgentLoop.__new__(SpokenAgentLoop)
    loop.config, loop.rollout_config = OmegaConf.create({"wavalign": node}), SimpleNamespace(seed=7)

    async def answer() -> None:
        loop.loop = asyncio.get_running_loop()
        await loop.run({"temperature": 1.0}, global_steps=2, index=5, session_id=1)

    asyncio.run(answer())
    assert given == [{"temperature": 1.0} | ({"seed": request_seed(7, 2, 5, 1)} if seeded else {})]


def test_the_buffer_is_ours_unless_the_user_has_one() -> None:
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from wavalign_ext.trainer.group_filter import ScoredGroups

    class Mine(ReplayBuffer):
        pass

    def built(cls: type) -> type:
        given = dict(trainer_mode="sync", trainer_config=None, max_off_policy_threshold=1)
        made = cls(**given, max_off_policy_strategy="drop", sampler_kwargs=None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PPOTrainerSync, "_build_replay_buffer", lambda self: made)
            trainer: Any = object.__new__(get_trainer_cls("wavalign"))
            return type(trainer._build_replay_buffer())

    assert built(ReplayBuffer) is ScoredGroups and built(Mine) is Mine


@pytest.mark.parametrize("colocated", [False, True])
def test_every_worker_is_watched_whoever_scores(monkeypatch: pytest.MonkeyPatch, colocated: bool) -> None:
    from wavalign_ext.trainer import watchdog

    names: list[str] = []

    def noted(name: str, *_: Any) -> watchdog.Probe:
        names.append(name)
        return lambda: None

    monkeypatch.setattr(watchdog, "server_probe", noted)
    monkeypatch.setattr(watchdog, "actor_probe", noted)
    # As verl's RewardLoopManager: with a co-located reward model the agent loops get no handles.
    rewards = SimpleNamespace(
        reward_loop_workers=["one", "two"],
        reward_loop_worker_handles=None if colocated else ["one", "two"],
        reward_model_manager=SimpleNamespace(server_addresses=["10.0.0.2:80"]) if colocated else None,
    )
    trainer = SimpleNamespace(
        llm_server_manager=SimpleNamespace(get_addresses=lambda: ["10.0.0.1:80"], global_load_balancer="router"),
        actor_rollout_wg=SimpleNamespace(workers=["rank"]),
        reward_loop_manager=rewards,
    )
    watchdog.trainer_probes(trainer, WatchdogConfig())
    watchdog.loop_probes("agent loop worker", ["loop"], WatchdogConfig())
    workers = ["the load balancer", "training worker 0", "reward worker 0", "reward worker 1", "agent loop worker 0"]
    models = ["the reward model 0 at 10.0.0.2:80"] if colocated else []
    assert names == ["the rollout engine 0 at 10.0.0.1:80", *models, *workers]


ON = "algorithm.filter_groups.enable=true"
REFUSED = [
    (["trainer.val_only=true", "trainer.val_before_train=false"], "val_before_train=False.*set it to true"),
    ([ON, "algorithm.filter_groups.metric=null"], "filter_groups.metric=None"),
    ([ON, "algorithm.filter_groups.metric=acc"], "metric='acc'.*: one of reward, score_semantic, score_manner$"),
    (["wavalign.seeded_sampling=1.5"], "seeded_sampling=1.5.*true or false"),
]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", ["+recipe=wavalign", *overrides])


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda given: str(given)[:40])
def test_what_cannot_work_is_refused_before_ray_starts(overrides: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        Preflight().on_job_start(composed(*overrides))


def test_a_finished_run_can_still_be_validated(tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("40")
    Preflight().on_run_start(composed(f"trainer.default_local_dir={tmp_path}", "trainer.val_only=true"))


TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}{% if polite %}you are kind{% else %}is{% endif %}"


def test_held_out_prompts_are_rendered_as_the_rollouts_are(world: Any) -> None:
    from wavalign_ext.trainer.validation_nll import _target_rows

    setup = world.setup()
    setup.tokenizer.chat_template = TEMPLATE
    messages = [{"role": "user", "content": "one plus two"}]

    def rendered(**options: Any) -> list[int]:
        trainer = SimpleNamespace(
            tokenizer=setup.tokenizer,
            processor=None,
            model_type="qwen2",
            config=OmegaConf.create({"data": {"apply_chat_template_kwargs": options}}),
            val_targets=[("three", [1, 2])],
            val_dataset=[{"raw_prompt": messages}],
            target=lambda target: [5, 6],
            layout=setup.layout,
            wav=SimpleNamespace(audio_root=None),
        )
        return _target_rows(trainer)[0]["prompts"].tolist()

    assert setup.tokenizer.decode(rendered()) == "one plus two is"
    assert setup.tokenizer.decode(rendered(polite=True)) == "one plus two you are kind"
