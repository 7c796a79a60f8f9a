"""Codecs beyond the fitted ones of :mod:`wavalign_ext.speech.codecs.base`; importing this package registers them.

Each imports what it needs when it is built, so a missing package or folder is an error of the one who asked for it.
"""

import importlib
import os
from collections.abc import Mapping
from typing import Any

from wavalign_ext.speech.codecs import base as _codec
from wavalign_ext.speech.codecs import codec2 as _codec2  # noqa: F401
from wavalign_ext.speech.codecs import glm4_voice as _glm4_voice  # noqa: F401
from wavalign_ext.speech.codecs import neural as _neural  # noqa: F401


def load_codec(spec: Mapping[str, Any], device: str | None = None) -> _codec.SpeechCodec:
    """:func:`wavalign_ext.speech.codecs.base.load_codec` outside a run: codecs of the user's packages are known as they are in one.

    verl imports what ``VERL_USE_EXTERNAL_MODULES`` names; so does this. Raises ImportError for a name that is none.
    """
    for name in os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(","):
        if name.strip():
            importlib.import_module(name.strip())
    return _codec.load_codec(spec, device)
