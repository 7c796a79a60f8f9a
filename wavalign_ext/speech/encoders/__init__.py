"""Speech encoders: from a recording to the feature vectors that a model takes. Importing this package registers them.

Each imports what it needs when it is built, so a missing package or folder is an error of the one who asked for it.
"""

from collections.abc import Mapping
from typing import Any

from wavalign_ext.speech.encoders import base as _base
from wavalign_ext.speech.encoders import sensevoice as _sensevoice  # noqa: F401
from wavalign_ext.speech.encoders import step_audio2 as _step_audio2  # noqa: F401
from wavalign_ext.speech.encoders import whisper as _whisper  # noqa: F401
from wavalign_ext.speech.external import import_external_modules


def load_encoder(spec: Mapping[str, Any]) -> _base.SpeechEncoder:
    """Build the encoder of ``spec``: ``{"type": name, **arguments}``; the types of the user's packages are known too.

    Raises as :func:`wavalign_ext.speech.encoders.base.load_encoder`; ImportError where ``VERL_USE_EXTERNAL_MODULES``
    names no module.
    """
    import_external_modules()
    return _base.load_encoder(spec)
