"""WavAlign: reinforcement learning for spoken dialogue models, as a plugin for verl.

Importing this package has no side effects; :mod:`wavalign_ext.plugin` is the entry point that has them.
"""

__version__ = "0.1.0"
