"""The asset folder: built once, resumed, waited for; its rows are what verl and the trainer expect."""

import json
import multiprocessing
import os
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile

from wavalign_ext.pocket import ANSWER_CODES, DATA_SOURCE, pocket_dir
from wavalign_ext.pocket.build import _asked, _Builder, _load_waves, _save_waves, balanced, build
from wavalign_ext.pocket.domain import FORM_SHARES, items, questions
from wavalign_ext.pocket.rows import RowWriter, Spoken, answer_audio, demonstration
from wavalign_ext.pocket.voices import DULL, LIVELY, MANNERS, VOICES
from wavalign_ext.speech.layout import load_layout

STAGES = ("speak", "fit", "encode", "warm_start")


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that ran, in order; they do nothing else."""
    ran: list[str] = []
    for name in STAGES:

        def stage(self: _Builder, name: str = name) -> dict:
            ran.append(name)
            return {"number": len(ran)}

        stage.__name__ = name
        monkeypatch.setattr(_Builder, name, stage)
    return ran


def test_a_build_is_made_once_and_again_on_request(stages: list[str], tmp_path: Path) -> None:
    out = tmp_path / "cache" / "pocket"
    assert build(out) == out
    report = json.loads((out / "report.json").read_text())
    assert report["encode"]["number"] == 3 and report["versions"]["torch"]
    assert (out / "layout.yaml").read_text().count("<|heard_{}|>") == 1
    build(out)
    assert stages == list(STAGES)
    build(out, force=True)
    assert stages == 2 * list(STAGES)
    assert not out.with_name("pocket.building").exists()


def test_an_interrupted_build_goes_on_from_its_last_finished_stage(
    stages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: _Builder) -> dict:
        raise KeyboardInterrupt

    killed.__name__ = "encode"
    with monkeypatch.context() as patch:
        patch.setattr(_Builder, "encode", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "pocket")
    assert not (tmp_path / "pocket").exists()
    build(tmp_path / "pocket")
    assert stages == ["speak", "fit", "encode", "warm_start"]


def _hold(path: str) -> None:
    from filelock import FileLock

    with FileLock(path):
        Path(path).with_name("held").touch()
        time.sleep(1.0)


def test_a_second_process_waits_for_the_first(stages: list[str], tmp_path: Path) -> None:
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(str(tmp_path / "pocket.lock"),))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    began = time.monotonic()
    build(tmp_path / "pocket")
    assert time.monotonic() - began > 0.5
    holder.join()


def test_the_folder_is_named_by_what_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVALIGN_CACHE", str(tmp_path))
    first = pocket_dir()
    assert first.parent == tmp_path and first == pocket_dir()
    monkeypatch.setattr("wavalign_ext.pocket.version", lambda package: "0.0.0")
    assert pocket_dir() != first


def test_waves_come_back_from_their_file(tmp_path: Path) -> None:
    waves = [np.array([0, 16384, -32768], np.int16), np.array([1], np.int16)]
    _save_waves(tmp_path / "waves.npz", waves)
    loaded = _load_waves(tmp_path / "waves.npz")
    assert [w.dtype for w in loaded] == [np.float32, np.float32]
    np.testing.assert_allclose(np.concatenate(loaded), [0, 0.5, -1, 1 / 32768])


def test_balanced_takes_kinds_in_turn_and_reuses_a_short_one() -> None:
    rows = [("a", i) for i in range(10)] + [("b", i) for i in range(2)]
    chosen = balanced(rows, 8, random.Random(0), kind=lambda row: row[0])
    assert Counter(kind for kind, _ in chosen) == {"a": 4, "b": 4}
    assert len({row for row in chosen if row[0] == "a"}) == 4
    assert len({row for row in chosen if row[0] == "b"}) == 2


def test_no_training_voice_is_a_held_out_one() -> None:
    settings = {(v.language, v.pitch, v.rate): v.role for v in (*VOICES, *MANNERS.values())}
    assert len(settings) == len(VOICES) + len(MANNERS)
    assert set(settings.values()) == {"warm", "rl", "held_out", "answer"}


def test_who_asks_what() -> None:
    asked = {(voice.role, q.taught, q.held_out) for voice, q in _asked()}
    assert asked == {
        ("warm", True, False),
        *(("rl", taught, False) for taught in (True, False)),
        *(("held_out", taught, new) for taught in (True, False) for new in (True, False)),
    }


def test_demonstrations_are_mixed_in_form_and_lively() -> None:
    drawn = [demonstration(random.Random(seed)) for seed in range(2000)]
    assert {manner for _, manner in drawn} == {LIVELY}
    for form, share in FORM_SHARES.items():
        assert np.mean([said == form for said, _ in drawn]) == pytest.approx(share, abs=0.05)
    assert {manner for _, manner in (demonstration(random.Random(s), list(MANNERS)) for s in range(50))} == set(MANNERS)


def test_rows_are_in_verls_format(tmp_path: Path) -> None:
    question = next(q for q in questions() if q.held_out)
    held_out = next(v for v in VOICES if v.role == "held_out")
    item = items()[question.item]
    writer = RowWriter(tmp_path, {(item.word, "bare", DULL): [1, ANSWER_CODES - 1]})
    spoken = Spoken(held_out, question, np.zeros(800, np.float32), [3, 5])
    writer.write("warm", [(spoken, ("bare", DULL))], audio=False)
    writer.write("val", [(spoken, ("bare", DULL))])
    assert not (tmp_path / "audio" / "warm").exists()
    (row,) = pandas.read_parquet(tmp_path / "data" / "val.parquet").to_dict("records")
    assert row["data_source"] == DATA_SOURCE and row["ability"] == question.kind
    assert [dict(m) for m in row["prompt"]] == [{"role": "user", "content": "<|heard_3|><|heard_5|>"}]
    assert row["reward_model"]["ground_truth"] == item.answer and row["target_text"] == item.word
    assert list(row["target_speech"]) == [1, ANSWER_CODES - 1]
    info = row["extra_info"]
    assert (info["index"], info["new_voice"], info["new_phrasing"]) == (1, True, True)
    assert {one["text"]: one["score"] for one in info["graded"]} == item.graded() and list(info["keywords"]) == [
        item.word
    ]
    assert not os.path.isabs(info["question_audio"]) and info["answer_audio"] == answer_audio((item.word, "bare", DULL))
    assert soundfile.info(tmp_path / info["question_audio"]).frames == 800


# --- the built assets, where there are some -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def assets() -> Path:
    folder = pocket_dir()
    if not (folder / "report.json").is_file():
        pytest.skip("the pocket assets are not built: python -m wavalign_ext.pocket")
    return folder


def test_the_built_rows_agree_with_each_other_and_with_the_tokenizer(assets: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets / "model")
    layout = load_layout("pocket").resolve(
        tokenizer, json.loads((assets / "model" / "config.json").read_text())["vocab_size"]
    )
    train, val = (pandas.read_parquet(assets / "data" / f"{split}.parquet") for split in ("train", "val"))
    infos = [*train["extra_info"], *val["extra_info"]]
    assert len({info["index"] for info in infos}) == len(infos)
    assert not {i["voice"] for i in train["extra_info"]} & {i["voice"] for i in val["extra_info"]}
    assert not {i["question"] for i in train["extra_info"]} & {
        i["question"] for i in val["extra_info"] if i["new_phrasing"]
    }
    for _, row in pandas.concat([train, val]).iterrows():
        ids = tokenizer.apply_chat_template(
            list(row["prompt"]), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert len(ids) <= 160
        target = layout.target(
            tokenizer.encode(row["target_text"], add_special_tokens=False), list(row["target_speech"])
        )
        assert len(target) <= 96 and layout.split(target).errors == []
        assert (assets / row["extra_info"]["answer_audio"]).is_file()
        assert (assets / row["extra_info"]["question_audio"]).is_file()


@pytest.mark.slow
def test_the_voice_is_understood_and_the_warm_start_leaves_work_for_reinforcement(assets: Path) -> None:
    from wavalign_ext.pocket.measure import lines, measure

    found = measure(assets)
    report = json.loads((assets / "report.json").read_text())
    assert report["measured"] == found and f"{found['start']['at_validation']['right']:.0%} right" in lines(found)[1]
    start, codec = found["start"]["at_training"], found["voice"]
    assert 0.35 <= start["right"] <= 0.85 and start["liked"] < 0.6 and 0.3 < start["lively"] < 0.7, start
    assert start["mixed_groups_of_4"] >= 1 / 4, start
    assert codec["whisper_wer_round_trip"] <= 0.10 and codec["decode_ms"] <= 20
    assert codec["manner_told_unseen"] >= 0.98
    assert report["megabytes"] < 100


def test_a_recording_becomes_a_prompt(assets: Path) -> None:
    from wavalign_ext.pocket import SAMPLE_RATE, encode_question
    from wavalign_ext.speech.audio import load_audio

    row = pandas.read_parquet(assets / "data" / "val.parquet").iloc[0]
    codes = encode_question(load_audio(assets / row["extra_info"]["question_audio"], SAMPLE_RATE), assets)
    assert "".join(f"<|heard_{code}|>" for code in codes) == row["prompt"][0]["content"]
