"""Reading the score out of what a judge wrote.

Everything in a reply that states a score is a candidate: structured (JSON), tagged (``<score>4</score>``) or labelled
("Score: 4/5"). Candidates that disagree, or one that is no number from 1 to 5, make the score missing: guessing which
of them was meant would train on the guess. Only where there is none of these, what is said in a sentence counts ("I
would give it a 4"), and only where that is lacking too, a number that stands alone. Thoughts are not read.
"""

import html
import json
import unicodedata
from dataclasses import dataclass
from typing import Any

import regex

LOW, HIGH = 1.0, 5.0  # the judge's own scale, whatever the terms' is
LONGEST = 20_000  # characters at a reply's end that are read
SHOWN = 100  # characters of a reply that a reason quotes


@dataclass(frozen=True)
class Reading:
    """``score`` in [1, 5], or None and ``reason``, which quotes what the reply says instead."""

    score: float | None
    reason: str = ""


@dataclass(frozen=True)
class _Candidate:
    score: float | None  # None: something stands in a score's place that is no number on the scale
    words: str


def read_score(reply: str) -> Reading:
    """The score that a judge's reply states. See the module."""
    text = _without_thoughts(_plain(reply))[-LONGEST:]
    objects, text = _json_objects(text)
    text = _SCALE_NAMED.sub(" ", text)
    tags, text = _tagged(text)
    prose = _QUOTATION.sub(" ", text)
    for found in (_structured(objects) + tags + _labelled(prose, strong=True), _said(prose), _alone(text)):
        if found:
            return _agreed(found, _other_scale(prose))
    return Reading(None, f"no score from {LOW:g} to {HIGH:g} in its reply {reply[:SHOWN]!r}")


def _agreed(found: list[_Candidate], other_scale: str) -> Reading:
    quoted = ", ".join(dict.fromkeys(repr(candidate.words.strip()[:SHOWN]) for candidate in found[:4]))
    if other_scale:
        return Reading(None, f"no score from {LOW:g} to {HIGH:g}: its reply names another scale, {other_scale!r}")
    if any(candidate.score is None for candidate in found):
        return Reading(None, f"no score from {LOW:g} to {HIGH:g}: its reply says {quoted}")
    if len({candidate.score for candidate in found}) > 1:
        return Reading(None, f"the scores in its reply disagree: {quoted}")
    return Reading(found[0].score)


# --- what is not read -------------------------------------------------------------------------------------------------

_THINKING = r"think(?:ing)?|thoughts?|reason(?:s|ing)?|reflection|analysis|scratchpad|cot|rationale|explanation"
_CHANNEL = r"<\|channel\|>(?:{})\b[^<]*<\|message\|>"
_THOUGHT_MARK = regex.compile(
    rf"(?P<opens>[<◁\[]\s*(?:\w+:)?(?:{_THINKING})\s*[>▷\]]|<\|begin_of_\w+\|>|{_CHANNEL.format('analysis|commentary')})"
    rf"|[<◁\[]\s*/\s*(?:\w+:)?(?:{_THINKING})\s*[>▷\]]|<\|end_of_thought\|>|{_CHANNEL.format('final')}",
    regex.I,
)
_QUOTATION = regex.compile(r'"[^"\n]*[^\W\d]\s[^"\n]*"|“[^”\n]*\s[^”\n]*”|«[^»\n]*\s[^»\n]*»|「[^」\n]*」')
_TO = r"\s*(?:-|–|—|~|to|through|bis|至|到)\s*"
_SCALE_NAMED = regex.compile(rf"[(\[]?\b(?:from\s+)?1{_TO}5\b[)\]]?(?!\s*(?:/|out\s+of))", regex.I)
_OTHER_SCALE = regex.compile(
    rf"\bscale\b[^.\n\d]{{0,20}}\d+{_TO}\d+|满分\D{{0,4}}\d+|\bmax(?:imum)?\b(?:\s+(?:score|points?|of|is))*\W*\d+",
    regex.I,
)


def _plain(reply: str) -> str:
    """Full-width forms, emphasis and escaped tags in their plain form."""
    reply = reply[-50 * LONGEST :]
    if "&lt;" in reply.lower():
        reply = html.unescape(reply)
    text = unicodedata.normalize("NFKC", reply).translate(dict.fromkeys(map(ord, "*`\u200b\ufe0f")))
    text = regex.sub(r"\.{2,}", "…", text).replace("__", "")
    quoted = text.strip()
    return quoted[1:-1] if quoted[:1] == quoted[-1:] == '"' and quoted.count('"') == 2 else text


def _without_thoughts(text: str) -> str:
    """What is outside of thoughts. Their opening mark may be lacking (a template wrote it), or their closing one."""
    kept, start, inside = [], 0, False
    for mark in _THOUGHT_MARK.finditer(text):
        if mark["opens"]:
            kept += [] if inside else [text[start : mark.start()]]
            inside = True
            continue
        if not inside:
            kept.clear()
        start, inside = mark.end(), False
    return " ".join(kept if inside else [*kept, text[start:]])


def _other_scale(text: str) -> str:
    """Words that name a scale with another top, "" where there are none."""
    for found in _OTHER_SCALE.finditer(text):
        ends = regex.findall(r"\d+", found[0])
        if ends[-1] != f"{HIGH:g}" or (len(ends) > 1 and ends[0] != f"{LOW:g}"):
            return found[0]
    return ""


# --- JSON -------------------------------------------------------------------------------------------------------------

_QUALIFIERS = "a the my our this its your final overall total holistic semantic acoustic rating give assign so and with"
_QUALIFIERS += " 最终 最后 综合 总 总体 整体 语义 声学 我的 回答"
_QUALIFIER = rf"(?:{'|'.join(sorted(_QUALIFIERS.split(), key=len, reverse=True))})"
_NAMES = "score rating grade bewertung punktzahl puntuación nota оценка балл"
_NAMES += " 评分 得分 分数 打分 评级 評価 点数 スコア 점수 평점"
_NAME = rf"(?:{'|'.join(_NAMES.split())})"
_KEY = regex.compile(rf"(?:{_QUALIFIER}[\s_-]*)?{_NAME}|总分|overall", regex.I)
_TOP_KEY = regex.compile(
    r"(?:max|maximum|top)(?:[\s_-]*(?:score|rating|points))?|out[\s_-]*of|scale[\s_-]*max|满分", regex.I
)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its pairs: of two equal keys, neither is dropped."""


def _json_objects(text: str) -> tuple[list[_Pairs], str]:
    """The JSON objects in ``text``, and the rest of it."""
    decoder = json.JSONDecoder(object_pairs_hook=_Pairs)
    objects, rest, start = [], [], 0
    tries = 0
    while (brace := text.find("{", start)) >= 0 and tries < 50:
        tries += 1
        try:
            found, end = decoder.raw_decode(text, brace)
        except (ValueError, RecursionError):
            end = brace + 1
            rest.append(text[start:end])
        else:
            objects.append(found)
            rest.append(text[start:brace])
        start = end
    return objects, " ".join([*rest, text[start:]])


def _structured(objects: list[_Pairs]) -> list[_Candidate]:
    """The scores in each object that lie nearest to its root; deeper ones are about parts."""
    found = []
    for root in objects:
        level: list[Any] = [root]
        for _ in range(8):
            pairs = [pair for node in level if isinstance(node, _Pairs) for pair in node]
            scores = [(key, value) for key, value in pairs if _KEY.fullmatch(key.strip())]
            if scores:
                tops = [value for key, value in pairs if _TOP_KEY.fullmatch(key.strip())]
                right = all(str(top) in ("5", "5.0") for top in tops)
                found += [_of_value(key, value if right else None) for key, value in scores]
                break
            level = [value for _, value in pairs] + [item for node in level if type(node) is list for item in node]
    return found


def _of_value(key: str, value: Any) -> _Candidate:
    words = f"{key}: {json.dumps(value, ensure_ascii=False)}"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _Candidate(None, words)
    return _Candidate(_score_at(str(value).strip(), 0), words)


# --- numbers in text --------------------------------------------------------------------------------------------------

_NUMBER = regex.compile(r"\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?")
_UNIT = regex.compile(r"\s*(?:分|点|점|points?\b|stars?\b|pts?\b|балл\w*|Punkte\b)", regex.I)
_OUT_OF = regex.compile(
    r"\s*(?:/|out\s+of|of\b|von\b|sur\b|из\b)\s*(?:a\s+(?:possible|maximum(?:\s+of)?)\s+)?(\w+(?:[.,]\d+)?)", regex.I
)
_SENTENCE_END = regex.compile(r"[.;!?。](?!\d)|[\n()\[\]]")
_OR = r"(?:or|to|and|through|up\s+to|oder|bis|und|ou|et|à|o|y|e|или|до|或者?|到|至|和|と|から|또는|half)"
_BRIDGE = regex.compile(rf"[^\w.;()]*(?:\b{_OR}\b[^\w]*)*", regex.I)
_SECOND_THOUGHT = regex.compile(
    rf"\s*[(\[]\W*(?:(?:{_OR}|maybe|perhaps|possibly|almost|nearly)\b\W*)*\d+(?:[.,]\d+)?\s*(?:[^\w\s.,]|$)", regex.I
)
_SURE = regex.compile(r"[:=]|confiden|certain|\bsure", regex.I)


def _score_at(text: str, start: int) -> float | None:
    """The number at ``start`` when it is a score: on the scale, of no other, alone, and no part of a range."""
    number = _NUMBER.match(text, start)
    if not number or regex.match(r"\s*[%⁄°]", text, pos=number.end()):
        return None
    end = number.end()
    if unit := _UNIT.match(text, end):
        end = unit.end()
    if out_of := _OUT_OF.match(text, end):
        if out_of[1].lower().rstrip("0").rstrip(".,") not in ("5", "five", "fünf", "cinq", "пяти"):
            return None
        end = out_of.end()
    if unit := _UNIT.match(text, end):
        end = unit.end()
    if regex.match(r"[\w]|[.,]\d", text, pos=end):
        return None
    score = float(number[0].replace(",", "."))
    return score if LOW <= score <= HIGH and not _has_rival(text, end, score) else None


def _has_rival(text: str, start: int, score: float) -> bool:
    """Whether the sentence goes on with another number in the score's place: "3 to 4", "3, maybe 4"."""
    stop = _SENTENCE_END.search(text, start)
    rest = text[start : stop.start() if stop else None]
    if regex.match(r"\s*and\s+a\s+half", rest, regex.I):
        return True
    if _SECOND_THOUGHT.match(text, start):
        return True
    for number in _NUMBER.finditer(rest):
        between = rest[: number.start()]
        if float(number[0].replace(",", ".")) == score:
            continue
        if _BRIDGE.fullmatch(between):
            return True
        bare = not regex.match(r"[ \t]*[^\W\d]", _UNIT.sub("", rest[number.end() :], count=1))
        if bare and len(between.split()) <= 3 and not _SURE.search(between):
            return True
    return False


# --- tags and labels --------------------------------------------------------------------------------------------------

_TAG = regex.compile(
    rf"<\s*(?P<name>[\w-]*{_NAME})\b[^<>]*>(?P<inside>\s*[^<\n]{{0,80}}\s*)(?:<\s*/[^<>]*>)?"
    r"|\\boxed\s*\{(?P<inside>[^{}\n]{0,80})\}|\[\[(?P<inside>[^\[\]\n]{0,80})\]\]",
    regex.I,
)
_PLACEHOLDER = regex.compile(r"\W*(?:[NX]|number|score)\W*", regex.I)
_VERB = r"(?:\s+(?:is|was|of|would\s+be|should\s+be|ist|est)\b|\s*[为是は])"
_LABEL = regex.compile(
    rf"(?<![\p{{L}}])(?P<before>[\p{{L}}'’]+[ _-]|\p{{Han}}{{1,4}})?{_NAME}(?![a-z\d_]|-\w)"
    rf"(?P<note>\s*[(\[][^)\]\n]{{0,40}}[)\]])?(?P<verb>{_VERB})?(?P<gap>[^\w.,;!?]{{0,12}})(?=\d)",
    regex.I,
)
_HYPOTHESIS = regex.compile(
    r"[^\w.!?;。\n]*(?:would|could|might|requires?|needs?|means?|if|when|where|is\s+(?:for|given|reserved))\b", regex.I
)
_CONDITION = regex.compile(
    r"\b(?:if|unless|had\s+(?:it|he|she|they)|were\s+it|to\s+(?:earn|get|reach|receive))\b", regex.I
)


def _tagged(text: str) -> tuple[list[_Candidate], str]:
    """The tags in ``text``, and the rest of it."""
    found = []
    for tag in _TAG.finditer(text):
        inside = tag["inside"]
        if (tag["name"] and not _KEY.fullmatch(tag["name"])) or _PLACEHOLDER.fullmatch(inside):
            continue
        if tag["name"] or regex.search(r"\d", inside):
            found.append(_Candidate(_score_at(regex.sub(r"^[\s(\[~+]+", "", inside), 0), tag[0]))
    return found, _TAG.sub(" ", text)


def _labelled(text: str, strong: bool) -> list[_Candidate]:
    """Labels with their numbers; strong ones have a mark between ("Score: 4"), others a word ("a score of 4")."""
    found = []
    for label in _LABEL.finditer(text):
        before, gap, note = (label[name] or "" for name in ("before", "gap", "note"))
        if before and not regex.fullmatch(_QUALIFIER, before.strip(" _-"), regex.I):
            continue  # a score of something else: "Confidence score: 5"
        number = _NUMBER.match(text, label.end())
        if number is None or bool(regex.search(r"[^\s\"'“”~]|\n", gap)) is not strong:
            continue
        after = _OUT_OF.match(text, number.end())
        if _HYPOTHESIS.match(text, after.end() if after else number.end()) or _is_conditional(text, label.start()):
            continue  # a score that was not given: "Score: 5 would need the city", "if it named the city, score: 5"
        follows = text[number.end() : number.end() + 2]
        signed = len(gap) > 1 and gap[-1] in "-–—−"
        bounded = regex.search(r"[≥≤]|(?<![-=])[<>]\s*$", gap) and ">" not in follows
        tops = regex.findall(r"\d+", note)
        score = None
        if not signed and not bounded and (not tops or tops[-1] == f"{HIGH:g}"):
            score = _score_at(text, label.end())
        found.append(_Candidate(score, label[0] + text[label.end() : number.end() + 16].split("\n")[0]))
    return found


def _is_conditional(text: str, start: int) -> bool:
    """Whether the sentence that leads to ``start`` sets a condition."""
    sentence = regex.split(r"[.!?;。](?!\d)|\n", text[max(0, start - 300) : start])[-1]
    return bool(_CONDITION.search(sentence))


# --- sentences, and numbers alone -------------------------------------------------------------------------------------

_SENTENCE = regex.compile(r"(?:[^.!?。\n]|[.](?=\d))+")
_NOT_MEANT = regex.compile(
    r"n't\b|\b(?:not|never|cannot|no|if|unless|needs?|needed|requires?|to\s+(?:earn|get|reach|receive|deserve)|instead|rather"
    r"|than|previous\w*|earlier|initial\w*|first|reserved|almost|nearly|between|below|under|above|over|least|most)\b|不",
    regex.I,
)
_GIVEN = regex.compile(
    r"\b(?:give|giving|rate|rating|assign|award|deserves?|merits?)\b[^\d\n:]{0,40}?(?<![-\w.,])(?=\d)|[打给]\D{0,8}?(?=\d+(?:[.]\d)?\s*分)",
    regex.I,
)
_LINE = regex.compile(r"^[^\w\n.,+<>≥≤-]{0,6}(?=\d)", regex.M)
_AFTER_LINE = regex.compile(r"[^\w\n%]*$|\s*[-–—:]\s+[^\W\d]|\s*\(|,?\s+(?:for|because|since|as)\b", regex.M | regex.I)
_IN_SUM = regex.compile(
    r"(?:\b(?:so|thus|therefore|hence|overall)|[:=])[\s,]*(?=\d+(?:[.,]\d)?\s*(?:/|out\s+of)\s*(?:5|five)\W*$)", regex.I
)


def _said(text: str) -> list[_Candidate]:
    """Scores in sentences that neither deny nor compare."""
    found = []
    for sentence in (match[0] for match in _SENTENCE.finditer(text)):
        if _NOT_MEANT.search(sentence):
            continue
        found += _labelled(sentence, strong=False)
        for given in _GIVEN.finditer(sentence):
            score = _score_at(sentence, given.end())
            if score is None or _AFTER_LINE.match(sentence, _end_of(sentence, given.end())):
                found.append(_Candidate(score, sentence))
    return found


def _alone(text: str) -> list[_Candidate]:
    """A number that is a line ("4", "4 - good"), or ends the reply as its sum ("…, so 4/5")."""
    found = [
        _Candidate(_score_at(text, line.end()), text[line.start() :].strip().split("\n")[0])
        for line in _LINE.finditer(text)
        if _AFTER_LINE.match(text, _end_of(text, line.end()))
    ]
    return found or [
        _Candidate(_score_at(text, summed.end()), text[summed.start() :]) for summed in _IN_SUM.finditer(text)
    ]


def _end_of(text: str, start: int) -> int:
    """Where the number at ``start`` ends, with its unit and what it is out of."""
    number = _NUMBER.match(text, start)
    end = number.end() if number else start
    for part in (_OUT_OF, _UNIT):
        found = part.match(text, end)
        end = found.end() if found else end
    return end
