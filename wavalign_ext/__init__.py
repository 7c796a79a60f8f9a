"""WavAlign: reinforcement learning for spoken dialogue models, as a plugin for verl.

Importing this package changes nothing outside of it: a finder waits, last in line, for import paths of earlier versions
(:mod:`wavalign_ext.moved`). :mod:`wavalign_ext.plugin` is the entry point, which has the side effects.
"""

from wavalign_ext import moved

__version__ = "0.1.0"

moved.install()
