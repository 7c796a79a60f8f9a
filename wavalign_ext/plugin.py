"""The entry point: verl imports this module in every process, and vLLM calls :func:`register_vllm`.

verl (``verl/__init__.py``) loads the group ``verl.plugins`` in the driver, the task runner and every worker, and
hides what it raises at DEBUG level. So a failure is printed here with its traceback, kept in :data:`FAILURE`, and
raised again; the recipe looks at :func:`require_active` while Hydra composes it and refuses to start.

These are the only import-time side effects of WavAlign.
"""

import sys
import traceback

ACTIVE = False
FAILURE: BaseException | None = None


def _load() -> None:
    from wavalign_ext import hardware, patches, resolvers

    hardware.choose_platform()
    resolvers.register()
    patches.install()


def require_active() -> None:
    """Stop the process with one line when the plugin is not working here."""
    if FAILURE is not None:
        raise SystemExit(f"wavalign: the plugin failed to load, so the recipe cannot run: {FAILURE!r}")
    if not ACTIVE:
        raise SystemExit(
            "wavalign: verl did not load the plugin. Remove VERL_USE_EXTERNAL_PLUGINS from the environment, or add "
            "'wavalign' to it; if it is not set, reinstall: pip install -e . --no-deps"
        )


def register_vllm() -> None:
    """``vllm.general_plugins`` hook, called in every vLLM process before a model is built."""
    if FAILURE is not None:
        raise RuntimeError("wavalign: the plugin failed to load in this vLLM process") from FAILURE


try:
    _load()
    ACTIVE = True
except Exception as error:
    FAILURE = error
    print("wavalign: the plugin failed to load:", file=sys.stderr)
    traceback.print_exc()
    raise
