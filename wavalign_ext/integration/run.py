"""What a recipe changes in the process that composed it, once, before Ray starts.

verl's command imports its trainer, and with it decides on a platform, before Hydra composes the recipe that says which
one the run is for. So the decision is made again here; a process that runs no recipe of ours never comes here.
"""

import getpass
import os
import sys
import tempfile

from omegaconf import DictConfig, OmegaConf, open_dict

from wavalign_ext.config import ConfigError
from wavalign_ext.integration import leftovers, versions
from wavalign_ext.integration.guard import Guard

VARIABLES = "ray_kwargs.ray_init.runtime_env.env_vars"


def begin(config: DictConfig) -> None:
    """Make this process one of the run: environment, platform, registrations and patches as its workers have them.

    The workers' variables in ``config`` become what they resolve to: verl hands them to Ray as they are written. Hydra
    copies the configuration for verl soon after ``on_run_start``, so that is where this belongs.

    Raises :class:`ConfigError` for versions or a configuration that cannot run, SystemExit for a plugin that did not
    load.
    """
    require_plugin()
    versions.check()
    from wavalign_ext import plugin
    from wavalign_ext.integration import patches

    variables = OmegaConf.select(config, VARIABLES)
    for name in variables:
        variables[name] = str(variables[name])
    if variables.VERL_ENGINE_VENDOR != plugin.ENGINE_VENDOR:
        raise ConfigError(
            f"{VARIABLES}.VERL_ENGINE_VENDOR={variables.VERL_ENGINE_VENDOR!r} is not allowed: it must be "
            f"{plugin.ENGINE_VENDOR!r}, or no worker has WavAlign's trainer and engine"
        )
    if (mine := os.environ.get("VERL_PLATFORM")) and mine != variables.VERL_PLATFORM:
        print(
            f"wavalign: the hardware preset's VERL_PLATFORM={variables.VERL_PLATFORM} replaces {mine} of this shell",
            flush=True,
        )
    # The raylet inherits it from here, but for the workers' temp folder.
    os.environ.update({name: value for name, value in variables.items() if name != "TMPDIR"})
    patches.install()
    _decide_platform_again(variables.VERL_PLATFORM)


def give_temp(config: DictConfig, guard: Guard) -> None:
    """Give the workers a temp folder of the run's own: vLLM and verl leave sockets and lock files there.

    The driver keeps its own, and with it Ray's logs; so do the compiler's caches, which the next run is to find.
    """
    variables = OmegaConf.select(config, VARIABLES)
    folder = leftovers.make_temp()
    guard.note(temp=folder)
    caches = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    with open_dict(variables):
        variables.TMPDIR = folder
        variables.setdefault("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR", caches))


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


def _decide_platform_again(name: str) -> None:
    """Give verl this platform in place of the one that it chose when it was imported."""
    from verl.plugin.platform import PlatformRegistry, get_platform, set_platform

    wanted = PlatformRegistry.get(name)
    if wanted is None:
        known = ", ".join(PlatformRegistry.registered_names())
        raise ConfigError(f"VERL_PLATFORM={name!r} is not a platform of verl: use one of {known}")
    if type(get_platform()) is not wanted:
        set_platform(wanted())
