"""A sample and its codes as a row of verl's, checked against layout and tokenizer as the preflight will check it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wavalign_ext.data.prepare.dialogue import Sample
from wavalign_ext.data.prepare.messages import Clip, SampleError, Turn
from wavalign_ext.data.prepare.setup import Setup
from wavalign_ext.speech.chat import prompt_ids
from wavalign_ext.speech.layout import TEXT, LayoutError

Codes = Mapping[str, np.ndarray]  # by the clip's name


@dataclass(frozen=True)
class Checked:
    """What a row is made of: chat messages, the target, and how many tokens each takes; the worse answer of a pair."""

    prompt: list[dict[str, str]]
    target_text: str
    target_speech: list[int]
    prompt_tokens: int
    target_tokens: int
    rejected: tuple[str, list[int]] | None = None


class RowMaker:
    """Makes rows for one layout and tokenizer. The longest lengths are in tokens; None allows any.

    The layout's ``chat`` has the system message of dialogues without one, unless ``system`` says otherwise ("" for
    none), and what surrounds the user's speech.
    """

    def __init__(
        self,
        setup: Setup,
        system: str | None = None,
        longest_prompt: int | None = None,
        longest_target: int | None = None,
    ) -> None:
        self.layout, self.tokenizer, self.system = setup.layout, setup.tokenizer, system
        self.longest_prompt, self.longest_target = longest_prompt, longest_target
        added = self.tokenizer.added_tokens_decoder
        self._special = {i for i, token in added.items() if token.special} | set(self.tokenizer.all_special_ids)

    def __call__(self, sample: Sample, codes: Codes) -> Checked:
        """Raises :class:`SampleError`: a text or a clip that layout, tokenizer or limits refuse."""
        prompt = self.prompt(sample, codes)
        length = len(prompt_ids(self.tokenizer, prompt))
        _check_length("messages", "prompt", length, self.longest_prompt)
        speech, answered = self._answer("target_text", sample.target_text, sample.target, codes)
        rejected = None
        if sample.rejected_text is not None:
            worse, tokens = self._answer("rejected_text", sample.rejected_text, sample.worse, codes)
            rejected, answered = (sample.rejected_text, worse), max(answered, tokens)
        return Checked(prompt, sample.target_text, speech, length, answered, rejected)

    def prompt(self, sample: Sample, codes: Codes) -> list[dict[str, str]]:
        """The messages up to the answer, speech as tokens by name. Raises :class:`SampleError`: what layout refuses."""
        prompt = [{"role": turn.role, "content": self._content(turn, codes)} for turn in sample.turns]
        system = self._system(sample) if self.system is None else self.system
        if system and prompt[0]["role"] != "system":
            prompt.insert(0, {"role": "system", "content": system})
        return prompt

    def _answer(self, name: str, text: str, clips: Sequence[Clip], codes: Codes) -> tuple[list[int], int]:
        """The codes of an answer, and how many tokens it takes."""
        speech = [int(code) for clip in clips for code in codes[clip.name]]
        ids = self._ids(text, name)
        try:
            length = len(self.layout.target(ids, speech))
        except LayoutError as error:
            raise SampleError(name, text, str(error)) from error
        _check_length(name, "target", length, self.longest_target)
        return speech, length

    def _system(self, sample: Sample) -> str:
        return self.layout.layout.chat.system_message(any(turn.role == "user" and turn.clips for turn in sample.turns))

    def _content(self, turn: Turn, codes: Codes) -> str:
        try:
            return self._spoken(turn, codes) if turn.role == "assistant" and turn.clips else self._plain(turn, codes)
        except LayoutError as error:
            raise SampleError("messages", turn.text, str(error)) from error

    def _plain(self, turn: Turn, codes: Codes) -> str:
        content = ""
        for part in turn.parts:
            if isinstance(part, Clip):
                content += self.layout.user_speech_prompt(codes[part.name].tolist(), content, turn.role)
            elif part:
                self._ids(part, "messages")
                content += part
        return content

    def _spoken(self, turn: Turn, codes: Codes) -> str:
        """An earlier answer as the model would have given it: text and speech in the layout's turns, as a string."""
        speech = [int(code) for clip in turn.clips for code in codes[clip.name]]
        ids = self.layout.interleave(self._ids(turn.text, "messages"), speech)
        out, words = [], []
        for i, kind in zip([*ids, None], [*self.layout.modality(ids).tolist(), None], strict=True):
            if kind == TEXT:
                words.append(i)
                continue
            out.append(self.tokenizer.decode(words))
            words = []
            out.append("" if i is None else self.tokenizer.convert_ids_to_tokens(i))
        content = "".join(out)
        if self.tokenizer.encode(content, add_special_tokens=False) != ids:  # a letter of several tokens was cut in two
            remedy = "give this turn without its speech"
            raise SampleError("messages", turn.text, f"the layout's turns cut a letter of it in two: {remedy}")
        return content

    def _ids(self, text: str, name: str) -> list[int]:
        """Token ids of plain text."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        wrong = next((i for i in ids if i in self._special), None)
        if wrong is not None:
            token = self.tokenizer.convert_ids_to_tokens(wrong)
            unknown = wrong == self.tokenizer.unk_token_id and token not in text
            why = "has a letter that the tokenizer does not know" if unknown else f"has the special token {token!r}"
            raise SampleError(name, text, f"{why}: take it out")
        return ids


def verl_row(sample: Sample, made: Checked, info: Mapping[str, Any], data_source: str) -> dict[str, Any]:
    """The columns that ``SpokenDataset``, the preflight and the rewards read; ``info`` becomes ``extra_info``."""
    pair: dict[str, Any] = {}
    if made.rejected is not None:
        (text, codes), (better, worse) = made.rejected, sample.scores
        pair = {"rejected_text": text, "rejected_speech": codes, "chosen_score": better, "rejected_score": worse}
    return pair | {
        "data_source": sample.data_source or data_source,
        "prompt": made.prompt,
        "ability": sample.task,
        "reward_model": {"style": "rule", "ground_truth": made.target_text},
        "target_text": made.target_text,
        "target_speech": made.target_speech,
        "extra_info": {**info, "id": sample.id, "question": sample.question, "keywords": list(sample.keywords)},
    }


def _check_length(field: str, what: str, length: int, longest: int | None) -> None:
    if longest is not None and length > longest:
        option = "max_prompt_length" if what == "prompt" else "max_response_length"
        raise SampleError(
            field, f"{length} tokens", f"the {what} is longer than {option}={longest}: raise it, or drop it"
        )
