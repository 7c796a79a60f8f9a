"""What the built assets are like: how well the voice is understood, and what the warm start answers.

Nothing of it is needed to train, and it takes a minute: ``wavalign pocket --measure`` puts it into the report.
"""

import json
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wavalign_ext.pocket import SAMPLE_RATE
from wavalign_ext.pocket.build import SEED, examples, said_answers
from wavalign_ext.pocket.domain import FORMS, LIKED
from wavalign_ext.pocket.fit import fit_mel_vq, manner_table
from wavalign_ext.pocket.rows import Said, answer_audio
from wavalign_ext.pocket.voices import DULL, LIVELY
from wavalign_ext.pocket.warmstart import accuracy
from wavalign_ext.speech.asr import Recognizer, load_recognizer, word_error_rate
from wavalign_ext.speech.audio import load_audio
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.speech.codecs.base import SpeechCodec
from wavalign_ext.speech.layout import load_layout

WORDS = 24
AT_ONCE = 2  # recordings that Whisper hears


def measure(folder: Path) -> dict[str, Any]:
    """The numbers of the assets in ``folder``; its report gets them too."""
    report = json.loads((folder / "report.json").read_text())
    report["measured"] = {"voice": _voice(folder), "start": _start(folder)}
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    return report["measured"]


def lines(measured: dict[str, Any]) -> list[str]:
    """The same for people."""
    voice, start = measured["voice"], measured["start"]["at_validation"]
    return [
        f"  codec round trip, word error rate by Whisper: {voice['whisper_wer_recorded']:.1%} → "
        f"{voice['whisper_wer_round_trip']:.1%} ({voice['whisper_wer_round_trip_unseen']:.1%} of words that the codec "
        f"was not made from), {voice['decode_ms']} ms a decoding",
        f"  warm start: {start['right']:.0%} right on new voices, {start['liked']:.0%} in the form that the reward "
        f"likes, {start['lively']:.0%} lively",
        "  by kind: " + ", ".join(f"{kind} {share:.0%}" for kind, share in start["by_kind"].items()),
    ]


def round_trip_wer(
    codec: SpeechCodec | None, waves: Sequence[np.ndarray], texts: Sequence[str], recognizer: Recognizer
) -> float:
    """Mean word error rate of ``waves`` after encode and decode; of the recordings themselves without a codec."""
    given = [wave if codec is None else codec.decode(codec.encode(wave)) for wave in waves]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        heard = threads.map(lambda wave: recognizer.transcribe(wave, SAMPLE_RATE), given)
        pairs = zip(texts, tqdm(heard, "round trip", len(texts), unit="utt"), strict=True)
        return float(np.mean([word_error_rate(text, said) for text, said in pairs]))


def _voice(folder: Path) -> dict[str, Any]:
    """Whisper's word error rate of sentences recorded and decoded, what a decoding takes, manners told apart.

    A second codec and a second table of manners that never had the measured words tell how much is memory.
    """
    answers = {said: load_audio(folder / answer_audio(said), SAMPLE_RATE) for said in said_answers()}
    measured = random.Random(SEED).sample(sorted({word for word, _, _ in answers}), WORDS)
    waves = [answers[word, LIKED, LIVELY] for word in measured]
    texts = [FORMS[LIKED].format(word) for word in measured]
    # One thread for each: two of one call wait for each other as soon as anything else wants a core.
    recognizer = load_recognizer({"type": "whisper", "threads": 1, "workers": AT_ONCE})
    codec = load_codec({"type": "mel_vq", "path": folder / "codec"})
    with tempfile.TemporaryDirectory() as others:
        fit_mel_vq([wave for said, wave in answers.items() if said[0] not in measured], Path(others), SEED)
        unseen = load_codec({"type": "mel_vq", "path": others})
    codecs = {"recorded": None, "round_trip": codec, "round_trip_unseen": unseen}
    numbers: dict[str, Any] = {"utterances": len(waves)}
    for label, one in codecs.items():
        numbers[f"whisper_wer_{label}"] = round(round_trip_wer(one, waves, texts, recognizer), 3)
    coded = [codec.encode(wave) for wave in waves]
    began = time.process_time()
    for codes in coded:
        codec.decode(codes)
    numbers["decode_ms"] = round(1000 * (time.process_time() - began) / len(coded), 1)
    codes = {said: codec.encode(wave) for said, wave in answers.items()}
    return numbers | {"manner_told_unseen": _told(codes, measured, codec.codebook_size)}


def _told(codes: dict[Said, list[int]], measured: Sequence[str], size: int) -> float:
    """The share of recordings of ``measured`` words whose manner is told by a table that never had them."""
    others = [(said[2], some) for said, some in codes.items() if said[0] not in measured]
    lively = manner_table(others, LIVELY, DULL, size) > 0
    told = [(lively[c].mean() > 0.5) == (said[2] == LIVELY) for said, c in codes.items() if said[0] in measured]
    return round(float(np.mean(told)), 3)


def _start(folder: Path) -> dict[str, Any]:
    """What is right, in which form and manner, of sampled answers to voices never heard."""
    import torch
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    layout = load_layout("pocket").resolve(tokenizer)
    model = Qwen2ForCausalLM.from_pretrained(folder / "model")
    lively = np.array(json.loads((folder / "codec" / "manner.json").read_text())) > 0
    chosen, settings = examples(folder, "val"), {"group": 8, "lively": lively}
    return {
        "at_validation": accuracy(model, chosen, layout, tokenizer, **settings),
        "at_training": accuracy(model, chosen, layout, tokenizer, temperature=1.0, top_p=1.0, **settings),
    }
