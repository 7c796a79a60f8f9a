"""Plain verl and vLLM beside an installed WavAlign are as they are without it; a run of ours gains only additions.

One script takes stock of an interpreter in which verl and vLLM were imported as a plain job does. It runs with both of
our entry points hidden, with both in place, and with both as in a worker of a GPU recipe.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import two_at_once

STOCK = """
import importlib.metadata, json, os, sys
before = dict(os.environ)
import verl.trainer.main_ppo
import verl.utils.distributed as distributed
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.plugin.platform import PlatformRegistry
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.trainer.ppo.v1 import trainer_base, trainer_sync
from verl.utils.device import get_device_name, get_vendor
from verl.workers.engine import EngineRegistry
import vllm.plugins
vllm.plugins.load_general_plugins()
import vllm.model_executor.layers.utils as layers


def name(thing):
    return f"{thing.__module__}.{thing.__qualname__}"


def distribution(asked):
    try:
        return importlib.metadata.version(asked)
    except importlib.metadata.PackageNotFoundError:
        return None


engines = EngineRegistry._engines
print("STOCK", json.dumps({
    "variables": {key: value for key, value in os.environ.items() if before.get(key) != value},
    "finders": [name(finder if isinstance(finder, type) else type(finder)) for finder in sys.meta_path
                if type(finder).__module__ != "wavalign_ext.moved"],  # asked last, and only about our own old names
    "device": [get_device_name(), get_vendor()],
    "vllm": distribution("vllm"),
    "engine": [name(EngineRegistry.get_engine_cls("language_model", backend)) for backend in ("fsdp", "fsdp2")],
    "wrapped": [hasattr(function, "__wrapped__") for function in (
        layers.dispatch_cpu_unquantized_gemm, distributed.initialize_global_process_group_ray)],
    "registries": {
        "platforms": {key: name(value) for key, value in PlatformRegistry._platforms.items()},
        "engines": {f"{model} {backend} {key}": name(value) for model, backends in engines.items()
                    for backend, keys in backends.items() for key, value in keys.items()},
        "estimators": {str(key): name(value) for key, value in ADV_ESTIMATOR_REGISTRY.items()},
        "losses": {str(key): name(value) for key, value in POLICY_LOSS_REGISTRY.items()},
        "trainers": {key: name(value) for key, value in trainer_base.TRAINER_REGISTRY.items()},
        "agent loops": {key: str(value) for key, value in _agent_loop_registry.items()},
    },
}))
"""
# Without what a run of ours sets, and as it was before this process imported verl.
INHERITED = {name: value for name, value in os.environ.items() if name not in ("VERL_PLATFORM", "VERL_ENGINE_VENDOR")}
# As if WavAlign were not installed: entry points are read from the distributions that this lists.
HIDE = """
import importlib.metadata as metadata
found = metadata.distributions
metadata.distributions = lambda **wanted: (one for one in found(**wanted) if one.metadata["Name"] != "wavalign")
"""


def python(script: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", script]
    return two_at_once.run(command, timeout=300, env=INHERITED | environment)


def stock(**environment: str) -> dict[str, Any]:
    done = python(STOCK, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("STOCK "))[6:])


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Stock verl and vLLM without us, with us installed, and in a run of ours."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "sitecustomize.py").write_text(HIDE)
    run = {"VERL_PLATFORM": "nvidia", "VERL_ENGINE_VENDOR": "wavalign"}
    return two_at_once.both(partial(stock, PYTHONPATH=str(folder)), stock, partial(stock, **run))


@pytest.fixture(scope="module")
def without(three: list[dict[str, Any]]) -> dict[str, Any]:
    return three[0]


def test_plain_verl_and_vllm_are_as_without_us(three: list[dict[str, Any]], without: dict[str, Any]) -> None:
    assert "wavalign" not in str(without["registries"]) and without["registries"]["trainers"]
    assert three[1] == without


def test_a_run_gains_additions_only(three: list[dict[str, Any]], without: dict[str, Any]) -> None:
    ours = three[2]
    gained = {}
    for registry, entries in without["registries"].items():
        assert ours["registries"][registry].items() >= entries.items(), registry
        gained[registry] = sorted(ours["registries"][registry].keys() - entries.keys())
    assert gained == {
        "platforms": ["cpu"],
        "engines": [
            "language_model fsdp ('cuda', 'wavalign')",
            "language_model fsdp2 ('cuda', 'wavalign')",
            "language_model fsdp2 cpu",
            "value_model fsdp2 cpu",
        ],
        "estimators": ["wavalign"],
        "losses": [],
        "trainers": ["wavalign", "wavalign_offline"],
        "agent loops": ["spoken", "spoken_pairs"],
    }
    assert set(ours["engine"]) == {"wavalign_ext.integration.engine.WavAlignFSDPEngine"}
    # What is for the CPU alone stays away from a GPU.
    assert (ours["vllm"], ours["wrapped"]) == (without["vllm"], [False, False])


def broken(folder: Path, module: str) -> dict[str, str]:
    """An environment in which importing ``module`` fails."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Break:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            raise ImportError('broken on purpose')\n"
        "sys.meta_path.insert(0, Break())\n"
    )
    return {"PYTHONPATH": str(folder)}


IMPORTS = "import verl, verl.trainer.ppo.core_algos; print('went on')"


@pytest.mark.parametrize("module", ["wavalign_ext.integration.patches", "wavalign_ext.method.advantage"])
def test_what_breaks_in_us_does_not_break_plain_verl(tmp_path: Path, module: str) -> None:
    done = python(IMPORTS, **broken(tmp_path, module))
    assert done.returncode == 0 and "went on" in done.stdout, done.stderr[-3000:]
    assert ("broken on purpose" in done.stderr) == (
        module == "wavalign_ext.integration.patches"
    )  # the other is never imported


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("wavalign_ext.integration.patches", "wavalign: the plugin failed to load: ImportError('broken on purpose')"),
        (
            "wavalign_ext.method.advantage",
            "wavalign_ext.integration.patches.PatchError: wavalign: register_estimator, after the import of "
            "verl.trainer.ppo.core_algos: ImportError('broken on purpose')",
        ),
    ],
)
def test_what_breaks_in_us_ends_a_run(tmp_path: Path, module: str, line: str) -> None:
    done = python(IMPORTS, VERL_PLATFORM="nvidia", VERL_ENGINE_VENDOR="wavalign", **broken(tmp_path, module))
    assert done.returncode != 0 and "went on" not in done.stdout
    assert done.stderr.strip().splitlines()[-1] == line
