"""What a recipe changes in the process that composed it, once, before Ray starts.

verl's command imports its trainer, and with it decides on a platform, before Hydra composes the recipe that says which
one the run is for. So the decision is made again here; a process that runs no recipe of ours never comes here.
"""

import os
import sys

from omegaconf import DictConfig, OmegaConf

from wavalign_ext.config import ConfigError
from wavalign_ext.integration import versions

VARIABLES = "ray_kwargs.ray_init.runtime_env.env_vars"


def begin(config: DictConfig) -> None:
    """Make this process one of the run: environment, platform, registrations and patches as its workers have them.

    Raises :class:`ConfigError` for versions or a configuration that cannot run, SystemExit for a plugin that did not
    load.
    """
    require_plugin()
    versions.check()
    from wavalign_ext import plugin
    from wavalign_ext.integration import patches

    variables = {name: str(value) for name, value in (OmegaConf.select(config, VARIABLES) or {}).items()}
    if variables.get("VERL_ENGINE_VENDOR") != plugin.ENGINE_VENDOR:
        raise ConfigError(
            f"{VARIABLES}.VERL_ENGINE_VENDOR={variables.get('VERL_ENGINE_VENDOR')!r} is not allowed: it must be "
            f"{plugin.ENGINE_VENDOR!r}, or no worker has WavAlign's trainer and engine"
        )
    if (mine := os.environ.get("VERL_PLATFORM")) and mine != (theirs := variables.get("VERL_PLATFORM", mine)):
        print(f"wavalign: the hardware preset's VERL_PLATFORM={theirs} replaces {mine} of this shell", flush=True)
    os.environ.update(variables)  # the raylet inherits it from here
    patches.install()
    _decide_platform_again()


def require_plugin() -> None:
    """End the process with one line unless verl has loaded the plugin, as it then does in the workers."""
    loaded_by_verl = "wavalign_ext.plugin" in sys.modules  # a failed import is not there
    try:
        from wavalign_ext import plugin  # noqa: F401  (says why, if it cannot be imported)
    except Exception as error:
        raise SystemExit(f"wavalign: the plugin failed to load, so the recipe cannot run: {error!r}") from error
    if not loaded_by_verl:
        raise SystemExit(
            "wavalign: verl did not load the plugin. Remove VERL_USE_EXTERNAL_PLUGINS from the environment, or add "
            "'wavalign' to it; if it is not set, reinstall: pip install -e . --no-deps"
        )


def _decide_platform_again() -> None:
    """Give verl the platform of ``VERL_PLATFORM`` in place of the one that it chose when it was imported."""
    from verl.plugin.platform import PlatformRegistry, get_platform, set_platform

    name = os.environ.get("VERL_PLATFORM", "").strip().lower()
    if not name:
        return
    wanted = PlatformRegistry.get(name)
    if wanted is None:
        known = ", ".join(PlatformRegistry.registered_names())
        raise ConfigError(f"VERL_PLATFORM={name!r} is not a platform of verl: use one of {known}")
    if type(get_platform()) is not wanted:
        set_platform(wanted())
