"""Which platform the processes of a run compute on: the recipe's preset says so, wherever it is started."""

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import two_at_once
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from wavalign_ext.checks.preflight import Preflight
from wavalign_ext.integration import hardware, patches, run, versions

NO_ACCELERATOR = pytest.mark.skipif(hardware.accelerator_visible(), reason="about a machine without an accelerator")
GPU_RECIPES = (
    ("+recipe=wavalign", "wavalign/hardware=gpu"),
    ("+recipe=wavalign_vita_audio",),
    ("+recipe=wavalign_vita_audio_lora",),
    ("+recipe=wavalign_vita_audio_2nodes",),
    ("+recipe=wavalign_glm4_voice",),
)
# verl's command up to the start of Ray, without the checks that want a model.
DRIVER = """
import json, ray
from verl.trainer import main_ppo
from verl.utils.device import get_device_name, get_vendor
from wavalign_ext.checks.preflight import Preflight
imported = [get_device_name(), get_vendor()]
Preflight.on_job_start = lambda *_, **__: None
run_ppo = main_ppo.run_ppo


def watched(config, **others):
    def init(**asked):
        print("FOUND", json.dumps({
            "imported": imported,
            "platform": [get_device_name(), get_vendor()],
            "trainer.device": config.trainer.device,
            "workers": asked["runtime_env"]["env_vars"],
        }), flush=True)
        raise SystemExit(0)
    ray.init = init
    run_ppo(config, **others)


main_ppo.run_ppo = watched
main_ppo.main()
"""
WORKER = """
import json, verl
from verl.utils.device import get_device_name, get_resource_name, get_vendor
from verl.workers.engine import EngineRegistry
engine = EngineRegistry.get_engine_cls("language_model", "fsdp2").__name__
print("FOUND", json.dumps([get_device_name(), get_vendor(), get_resource_name(), engine]))
"""
# A shell's variables, before this process imported verl.
SHELL = {name: value for name, value in os.environ.items() if name not in ("VERL_PLATFORM", "VERL_ENGINE_VENDOR")}


def python(script: str, *arguments: str, **environment: str) -> tuple[Any, str]:
    """What the script found, and all that it printed."""
    command = [sys.executable, "-c", script, *arguments]
    done = two_at_once.run(command, timeout=300, env=SHELL | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:]), done.stdout


@pytest.fixture(autouse=True)
def detect_anew() -> Iterator[None]:
    hardware._detected.cache_clear()
    yield
    hardware._detected.cache_clear()


def composed(*overrides: str) -> DictConfig:
    import verl  # noqa: F401  (loads the plugin)

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", list(overrides))


def told(config: DictConfig) -> str:
    """The platform that Ray's workers are told."""
    return OmegaConf.select(config, run.VARIABLES).VERL_PLATFORM


# --- from the shell to the workers ----------------------------------------------------------------------------------


def run_of(recipe: str, **shell: str) -> tuple[dict[str, Any], str, list[str]]:
    """What a driver of a run finds, what it prints, and what a worker that it starts finds."""
    name = "-".join([recipe, *shell.values()])  # two at a time want a folder each
    driver, printed = python(DRIVER, f"+recipe={recipe}", f"trainer.experiment_name={name}", **shell)
    return driver, printed, python(WORKER, **driver["workers"])[0]


VITA = "wavalign_vita_audio"
RUNS = {
    "default": partial(run_of, "wavalign"),
    "": partial(run_of, VITA),
    "amd": partial(run_of, VITA, VERL_PLATFORM="amd"),
    "cpu": partial(run_of, VITA, VERL_PLATFORM="cpu"),
}


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Any]]:
    """Futures of ``RUNS``, two at a time."""
    with two_at_once.started(RUNS) as found:
        yield found


@NO_ACCELERATOR
def test_the_default_recipe_on_a_machine_without_an_accelerator(runs: dict[str, Any]) -> None:
    driver, _, worker = runs["default"].result()
    assert driver["imported"] == ["cuda", "nvidia"]  # as verl falls back, which no import of ours changes
    assert driver["platform"] == ["cpu", "cpu"] and driver["trainer.device"] == "cpu"
    assert worker == ["cpu", "cpu", "GPU", "CpuFSDPEngineWithLMHead"]


@NO_ACCELERATOR
@pytest.mark.parametrize(
    ("shell", "vendor", "said"),
    [
        ("", "nvidia", None),
        ("amd", "amd", None),
        ("cpu", "nvidia", "VERL_PLATFORM=nvidia replaces cpu of this shell"),
    ],
)
def test_a_recipe_for_gpus_on_a_head_node_without_one(
    runs: dict[str, Any], shell: str, vendor: str, said: str | None
) -> None:
    driver, printed, worker = runs[shell].result()
    assert driver["platform"] == ["cuda", vendor] and driver["trainer.device"] == "cuda"
    assert said in printed if said else "replaces" not in printed
    assert worker == ["cuda", vendor, "GPU", "WavAlignFSDPEngine"]


# --- what a recipe tells ---------------------------------------------------------------------------------------------


@NO_ACCELERATOR
@pytest.mark.parametrize("recipe", GPU_RECIPES, ids=" ".join)
@pytest.mark.parametrize("shell", ["", "cpu"])
def test_workers_of_every_recipe_for_gpus_are_told_nvidia(
    monkeypatch: pytest.MonkeyPatch, recipe: tuple[str, ...], shell: str
) -> None:
    monkeypatch.setenv("VERL_PLATFORM", shell)
    config = composed(*recipe)
    assert told(config) == "nvidia" and config.trainer.device == "cuda"


def test_the_user_s_platform_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for platform in ("amd", "huawei", "Nvidia"):
        monkeypatch.setenv("VERL_PLATFORM", platform)
        assert told(composed("+recipe=wavalign_glm4_voice")) == platform.lower()


@NO_ACCELERATOR
def test_a_torch_for_rocm_means_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert told(composed("+recipe=wavalign_vita_audio")) == "amd"


def test_what_verl_finds_on_this_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.plugin.platform import PlatformRegistry

    for name in PlatformRegistry.registered_names():
        platform = PlatformRegistry.get(name)
        assert platform is not None
        monkeypatch.setattr(
            platform, "is_platform_available", lambda self, use_smi_check=False, it=name: it == "huawei"
        )
    assert told(composed("+recipe=wavalign_vita_audio")) == "huawei"


def test_the_cpu_platform_is_never_what_verl_detects() -> None:
    import verl  # noqa: F401  (loads the plugin)

    from wavalign_ext.integration.cpu_platform import PlatformCPU

    assert not PlatformCPU().is_platform_available(use_smi_check=True)


def test_an_unknown_platform_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "abacus")
    with pytest.raises(SystemExit, match=r"^wavalign: VERL_PLATFORM='abacus' is not a platform of verl: use one of nv"):
        Preflight().on_run_start(composed("+recipe=wavalign_vita_audio"))


def test_workers_without_the_plugin_s_switch_are_named() -> None:
    with pytest.raises(SystemExit, match=r"^wavalign: .*env_vars\.VERL_ENGINE_VENDOR='metax' is not allowed"):
        Preflight().on_run_start(composed("+recipe=wavalign", f"{run.VARIABLES}.VERL_ENGINE_VENDOR=metax"))


def test_untested_versions_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions.TESTED, "verl", "==0.8.*")
    with pytest.raises(SystemExit, match=r"^wavalign: untested versions: verl 0\.9\.1 \(tested: ==0\.8\.\*\)"):
        Preflight().on_run_start(composed("+recipe=wavalign"))


def test_an_action_that_fails_ends_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def install() -> None:
        raise patches.PatchError("wavalign: an action, after the import of a module: KeyError('gone')")

    monkeypatch.setattr(patches, "install", install)
    with pytest.raises(SystemExit, match=r"^wavalign: an action, after the import of a module"):
        Preflight().on_run_start(composed("+recipe=wavalign"))
