"""Registrations of the user's packages, outside a run."""

import importlib
import os


def import_external_modules() -> None:
    """Import what ``VERL_USE_EXTERNAL_MODULES`` names, as verl does in a run. Raises ImportError for what is none."""
    for name in os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(","):
        if name.strip():
            importlib.import_module(name.strip())
