"""A person's recording through the way of a user's question: file, units, prompt, answer. See tests/human.py."""

from pathlib import Path

import numpy as np
import pytest
from human import recordings

from wavalign_ext.pocket import SAMPLE_RATE, encode_question, pocket_dir
from wavalign_ext.speech.asr import load_recognizer, word_error_rate
from wavalign_ext.speech.audio import load_audio
from wavalign_ext.speech.layout import load_layout

WORDS = "he was not an ill disposed young man"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    said = recordings(tmp_path_factory.mktemp("human"))
    return next(path for path, words in said.items() if words == WORDS)


def test_a_person_is_understood_by_the_open_recogniser(recording: Path) -> None:
    heard = load_recognizer({"type": "whisper", "threads": 1}).transcribe(
        load_audio(recording, SAMPLE_RATE), SAMPLE_RATE
    )
    assert word_error_rate(WORDS, heard) <= 0.25, heard


def test_a_person_gets_a_well_formed_answer(recording: Path) -> None:
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    from wavalign_ext.pocket.warmstart import sample

    assets = pocket_dir()
    if not (assets / "report.json").is_file():
        pytest.skip("the pocket assets are not built: python -m wavalign_ext.pocket")
    tokenizer = AutoTokenizer.from_pretrained(assets / "model")
    layout = load_layout("pocket").resolve(tokenizer)
    wave = load_audio(recording, SAMPLE_RATE)
    codes = encode_question(wave)
    assert len(codes) == pytest.approx(len(wave) / SAMPLE_RATE * 25, abs=2)
    assert len(set(codes)) > len(codes) / 3  # speech, not one unit over and over
    louder = encode_question(np.clip(0.5 * wave, -1, 1))
    assert np.mean([a == b for a, b in zip(codes, louder, strict=True)]) > 0.5
    message = [{"role": "user", "content": layout.user_speech_prompt(codes)}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False)
    model = Qwen2ForCausalLM.from_pretrained(assets / "model")
    (answer,) = sample(model, [list(prompt)], layout, temperature=0.1, top_p=1.0)
    split = layout.split(answer)
    assert split.text_ids and split.codes and split.ended and not split.errors
