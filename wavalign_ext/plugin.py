"""The entry point: verl imports this module in every process, and vLLM calls :func:`register_vllm`.

Having WavAlign installed changes nothing for plain verl and vLLM, but that vLLM knows our models by name. It acts
where it was asked for by one of verl's own switches, which a recipe's preset gives to Ray's workers and, when the run
begins (``run.py``), to its own process:

- ``VERL_ENGINE_VENDOR=wavalign`` (``wavalign/base.yaml``): the training engine is WavAlign's. Every run of ours has it.
- ``VERL_PLATFORM=cpu`` (``wavalign/hardware/cpu.yaml``): a platform that verl does not know without WavAlign.

verl (``verl/__init__.py``) loads the group ``verl.plugins`` in the driver, the task runner and every worker, and hides
what it raises at DEBUG level. So a failure is printed here with its traceback; a process that WavAlign was asked for
ends with it, and a recipe asks when it composes whether verl loaded this module.
"""

import os
import sys
import traceback

ENGINE_VENDOR = "wavalign"


def asked_for() -> bool:
    """Whether this process belongs to a run of ours, or computes on our CPU platform."""
    return os.environ.get("VERL_ENGINE_VENDOR") == ENGINE_VENDOR or os.environ.get("VERL_PLATFORM") == "cpu"


def _load() -> None:
    from wavalign_ext.integration import patches, resolvers

    resolvers.register()
    if asked_for():
        patches.install()


def register_vllm() -> None:
    """``vllm.general_plugins`` hook, in every process of vLLM: our models by name, so that it serves what we export."""
    from vllm import ModelRegistry

    from wavalign_ext import models

    models.register_with_vllm()
    if asked_for():
        for name, module in (("TwoStreamForCausalLM", "vllm_model"), ("HearingTwoStreamForCausalLM", "hearing_vllm")):
            ModelRegistry.register_model(name, f"wavalign_ext.parallel.{module}:{name}")


try:
    _load()
except Exception as error:
    print("wavalign: the plugin failed to load:", file=sys.stderr)
    traceback.print_exc()
    if asked_for():
        raise SystemExit(f"wavalign: the plugin failed to load: {error!r}") from error  # verl hides an Exception
    raise
