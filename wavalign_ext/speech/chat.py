"""How a model's prompts are written: system text, what surrounds the user's speech, the chat template.

The facts are data, the ``chat`` node of a layout. :func:`prompt_ids` is the one place where a dialogue becomes ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from wavalign_ext.speech.token_names import LayoutError

# One message per role and a second answer: enough to tell two chat templates apart.
PROBES = (
    [{"role": "user", "content": "u"}],
    [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")],
)


@dataclass(frozen=True)
class UserSpeech:
    """What surrounds the user's speech: the tokens ``begin`` and ``end``, and the text ``before`` in a user's turn."""

    begin: str
    end: str
    before: str = ""


@dataclass(frozen=True)
class Chat:
    """The ``chat`` node of a layout.

    ``system`` is the system message of dialogues without one; ``system_text`` that of dialogues in which the user only
    writes, where the model has another for them. ``template`` is the chat template (Jinja) that the published code
    renders with; null leaves the tokenizer's unchecked.
    """

    system: str | None = None
    system_text: str | None = None
    user_speech: UserSpeech | None = None
    template: str | None = None

    @classmethod
    def from_mapping(cls, node: Mapping[str, Any], where: str) -> Chat:
        """Build from a YAML node. Raises :class:`LayoutError`: unknown key or malformed value."""
        if not isinstance(node, Mapping):
            raise LayoutError(f"{where}: chat={node!r} is malformed: give a mapping with {', '.join(_names(cls))}")
        _check_text(node, cls, {"system", "system_text", "template"}, f"{where}, chat")
        speech = node.get("user_speech")
        if speech is not None:
            if not isinstance(speech, Mapping) or not {"begin", "end"} <= speech.keys():
                raise LayoutError(f"{where}, chat: user_speech={speech!r} is malformed: give begin and end by name")
            _check_text(speech, UserSpeech, {"begin", "end", "before"}, f"{where}, chat.user_speech")
            speech = UserSpeech(**{key: value for key, value in speech.items() if value is not None})
        return cls(**{**node, "user_speech": speech})

    def system_message(self, user_speaks: bool) -> str:
        """The system message of a dialogue that has none of its own; "" for none."""
        text = self.system if user_speaks or self.system_text is None else self.system_text
        return text or ""

    def around(self, names: str, text: str, role: str) -> str:
        """Speech tokens by name, with what surrounds them; ``text`` is what the message says before them.

        ``before`` is not said twice: a user's text may end with it already, as VITA-Audio's instructions do.
        """
        if self.user_speech is None:
            return names
        before = self.user_speech.before
        if role != "user" or (text and text.endswith(before)):
            before = ""
        return f"{before}{self.user_speech.begin}{names}{self.user_speech.end}"

    def check_template(self, tokenizer: Any, where: str) -> None:
        """Raises :class:`LayoutError`: the tokenizer's chat template writes other prompts than the layout's."""
        own = getattr(tokenizer, "chat_template", None)
        if self.template is None or own is None or own == self.template:
            return
        for messages in PROBES:
            render = {"conversation": messages, "add_generation_prompt": True, "tokenize": False}
            found = tokenizer.apply_chat_template(**render)
            wanted = tokenizer.apply_chat_template(**render, chat_template=self.template)
            if found != wanted:
                raise LayoutError(
                    f"{where}: the tokenizer's chat template writes {found!r}, the model's own code {wanted!r}: "
                    "convert the model again (wavalign convert), or set wavalign.layout.chat.template=null to keep it"
                )


def prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> list[int]:
    """The ids (P,) of a dialogue up to the answer, as verl's agent loop makes them.

    ``template_kwargs`` are those of ``data.apply_chat_template_kwargs``.
    """
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": False} | template_kwargs
    return list(tokenizer.apply_chat_template(list(messages), **settings))


def _names(cls: Any) -> list[str]:
    return [item.name for item in fields(cls)]


def _check_text(node: Mapping[str, Any], cls: Any, texts: set[str], where: str) -> None:
    for key, value in node.items():
        if key not in _names(cls):
            raise LayoutError(f"{where}: key {key!r} is not known: its keys are {', '.join(_names(cls))}")
        if key in texts and not (value is None or isinstance(value, str)):
            raise LayoutError(f"{where}: {key}={value!r} is no text: write a string")
