"""Run from this repository's folder, ``import kernels`` finds this folder; transformers asks for a package so named.

Without a version it would refuse to start models on an accelerator; version 0 is too old for it, so it goes on without.
"""

__version__ = "0"
