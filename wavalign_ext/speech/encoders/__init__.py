"""Speech encoders: a recording to the feature vectors that a model hears; importing this package registers them.

Each imports what it needs when it is built, so a missing package or folder is an error of the one who asked for it.
"""

import importlib
import os
from collections.abc import Mapping
from typing import Any

from wavalign_ext.speech.encoders import base as _base
from wavalign_ext.speech.encoders import sensevoice as _sensevoice  # noqa: F401
from wavalign_ext.speech.encoders import step_audio2 as _step_audio2  # noqa: F401
from wavalign_ext.speech.encoders import whisper as _whisper  # noqa: F401


def load_encoder(spec: Mapping[str, Any]) -> _base.SpeechEncoder:
    """:func:`base.load_encoder` outside a run: encoders of the user's packages are known as they are in one.

    verl imports what ``VERL_USE_EXTERNAL_MODULES`` names; so does this. Raises ImportError for a name that is none.
    """
    for name in os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(","):
        if name.strip():
            importlib.import_module(name.strip())
    return _base.load_encoder(spec)
