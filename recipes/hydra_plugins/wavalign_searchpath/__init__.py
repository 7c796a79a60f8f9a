"""Puts WavAlign's recipes on Hydra's search path, so that stock verl finds ``+recipe=wavalign``.

Hydra imports this before it composes anything, whether or not verl managed to load the plugin. The resolver
``${wavalign_hardware:}``, used in the recipes' defaults list, is therefore where a broken plugin is noticed.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf


class WavAlignSearchPath(SearchPathPlugin):
    """Appends the recipe package to the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="wavalign", path="pkg://wavalign_recipes")


def _hardware() -> str:
    from wavalign_ext.integration import hardware, run

    run.require_plugin()
    return hardware.preset()


OmegaConf.register_new_resolver("wavalign_hardware", _hardware, replace=True)
