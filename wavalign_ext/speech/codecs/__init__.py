"""Speech codecs; importing this package registers those that come with WavAlign.

Each imports what it needs when it is built, so a missing package or folder is an error of the one who asked for it.
"""

from collections.abc import Mapping
from typing import Any

from wavalign_ext.speech.codecs import codec2 as _codec2  # noqa: F401
from wavalign_ext.speech.codecs import fitted as _fitted  # noqa: F401
from wavalign_ext.speech.codecs import glm4_voice as _glm4_voice  # noqa: F401
from wavalign_ext.speech.codecs import kimi_audio as _kimi_audio  # noqa: F401
from wavalign_ext.speech.codecs import neural as _neural  # noqa: F401
from wavalign_ext.speech.codecs import no_speech as _no_speech  # noqa: F401
from wavalign_ext.speech.codecs.base import SpeechCodec, make_codec, register_codec
from wavalign_ext.speech.external import import_external_modules

__all__ = ["SpeechCodec", "load_codec", "register_codec"]


def load_codec(spec: Mapping[str, Any], device: str | None = None) -> SpeechCodec:
    """Build the codec of ``spec``: ``{"type": name, **arguments}``; the types of the user's packages are known too.

    Args:
        device: where the codec computes; it replaces the spec's, for a codec that has one.

    Raises:
        ValueError: an unknown type (the message names the known ones), or a device that does not exist.
        ImportError: ``VERL_USE_EXTERNAL_MODULES`` names no module.
    """
    import_external_modules()
    return make_codec(spec, device)
