"""A recipe composed as verl's command composes it, without a run."""

from collections.abc import Sequence
from typing import Any

from wavalign_ext.config import WavAlignConfig

DEFAULT = "wavalign"


def compose_recipe(overrides: Sequence[str]) -> tuple[list[str], Any, WavAlignConfig]:
    """(overrides, verl's configuration, our node of it), checked; ``+recipe=wavalign`` where none names a recipe.

    Raises:
        ValueError: what a run with these overrides would end with, in its preflight or before it.
    """
    from hydra import compose, initialize_config_module

    from wavalign_ext.checks.preflight import check_config

    words = list(overrides)
    if not any(override.lstrip("+").startswith("recipe=") for override in words):
        words = [f"+recipe={DEFAULT}", *words]
    with initialize_config_module("verl.trainer.config", version_base=None):
        try:
            config = compose("ppo_trainer", words)
            return words, config, check_config(config)
        except SystemExit as error:  # of the resolver that misses the plugin
            raise ValueError(str(error)) from error
