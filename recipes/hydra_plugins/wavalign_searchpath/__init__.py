"""Puts WavAlign's recipes on Hydra's search path, so that stock verl finds ``+recipe=wavalign``.

Hydra imports this before it composes anything, whether or not verl managed to load the plugin. The resolver
``${wavalign_hardware:}``, used in the recipes' defaults list, is therefore where a broken plugin is noticed.
"""

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf


class WavAlignSearchPath(SearchPathPlugin):
    """Appends the recipe package to the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="wavalign", path="pkg://wavalign_recipes")


def _hardware() -> str:
    loaded_by_verl = "wavalign_ext.plugin" in sys.modules  # a failed import is not there
    try:
        from wavalign_ext import hardware, plugin  # noqa: F401  (says why, if it cannot be imported)
    except Exception as error:
        raise SystemExit(f"wavalign: the plugin failed to load, so the recipe cannot run: {error!r}") from error
    if not loaded_by_verl:
        raise SystemExit(
            "wavalign: verl did not load the plugin. Remove VERL_USE_EXTERNAL_PLUGINS from the environment, or add "
            "'wavalign' to it; if it is not set, reinstall: pip install -e . --no-deps"
        )
    return hardware.preset()


OmegaConf.register_new_resolver("wavalign_hardware", _hardware, replace=True)
