"""The entry point: verl imports this module in every process, and vLLM calls :func:`register_vllm`.

verl (``verl/__init__.py``) loads the group ``verl.plugins`` in the driver, the task runner and every worker, and
hides what it raises at DEBUG level. So a failure is printed here with its traceback and raised again; a recipe asks
whether verl loaded this module while Hydra composes it (``hydra_plugins.wavalign_searchpath``), and refuses to start.

These are the only import-time side effects of WavAlign.
"""

import sys
import traceback


def _load() -> None:
    from wavalign_ext import hardware, patches, resolvers

    hardware.choose_platform()
    resolvers.register()
    patches.install()


def register_vllm() -> None:
    """``vllm.general_plugins`` hook: importing this module in every vLLM process is all that it is for."""


try:
    _load()
except Exception:
    print("wavalign: the plugin failed to load:", file=sys.stderr)
    traceback.print_exc()
    raise
