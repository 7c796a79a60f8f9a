"""Puts this package's recipes and layouts on Hydra's search path. ``hydra_plugins`` itself has no ``__init__.py``."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class ExampleSearchPath(SearchPathPlugin):
    """Appends ``wavalign_example/conf``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="wavalign_example", path="pkg://wavalign_example.conf")
