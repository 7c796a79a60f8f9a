"""The ``streams`` node of a layout of type ``parallel``: what is forced on two streams that run side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from wavalign_ext.speech.token_names import LayoutError, is_count


@dataclass(frozen=True)
class Streams:
    """Tokens by name. Each is of one stream: audio ids begin with the first code, text ids lie below it.

    ``delay``: frames at the start of an answer in which the audio stream is silent (``audio_blank``), forced.
    ``text_end`` ends the text; what follows on its stream is ``text_blank``, forced. ``audio_start`` is the audio token
    that ends a prompt. The audio ends with one of the layout's ``eos``, and the answer with it.
    """

    delay: int
    text_blank: str
    text_end: str
    audio_blank: str
    audio_start: str

    @classmethod
    def from_mapping(cls, node: Any, where: str) -> Streams:
        """Build from a YAML node. Raises :class:`LayoutError`: a key is unknown or missing, or a value malformed."""
        allowed = [item.name for item in fields(cls)]
        if not isinstance(node, Mapping) or set(node) != set(allowed):
            raise LayoutError(f"{where}: streams={node!r} is malformed: give a mapping with {', '.join(allowed)}")
        if not is_count(node["delay"], 0):
            raise LayoutError(f"{where}: streams.delay={node['delay']!r}: give a whole number of frames, 0 or more")
        for key in allowed[1:]:
            if not isinstance(node[key], str):
                raise LayoutError(f"{where}: streams.{key}={node[key]!r}: give a token by its name")
        return cls(**node)
