"""verl's dataset on what ``wavalign prepare`` writes, and on rows that still hold recordings."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import small_world as small
import soundfile
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from wavalign_ext.data.prepare.command import main


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """(world, folder): five dialogues prepared into ``folder/out``, their recordings in ``folder``."""
    world, folder = small.build(tmp_path_factory.mktemp("world")), tmp_path_factory.mktemp("data")
    names = []
    for n in range(5):
        small.record(folder / f"q{n}.wav", small.voice(n))
        small.record(folder / f"a{n}.wav", small.voice(50 + n), subtype="FLOAT")
        names.append((f"q{n}.wav", f"a{n}.wav"))
    file = small.write_jsonl(folder / "d.jsonl", [small.dialogue(*pair) for pair in names])
    options = [str(file), "--out", str(folder / "out"), *world.options, "--jobs", "1", "--val-share", "0"]
    assert main(options) == 0
    return world, folder


def dataset(kind: str, file: Path, world: Any, *more: Path, **spoken: Any) -> Any:
    from wavalign_ext.data import dataset as module

    layout = OmegaConf.to_container(OmegaConf.load(world.layout))
    settings = {"layout": layout, "codec": world.codec, "input_codec": world.user_speech, **spoken}
    node: dict[str, Any] = {"max_prompt_length": 64, "cache_dir": str(file.parent / "cache"), "spoken": settings}
    tokenizer = AutoTokenizer.from_pretrained(world.folder / "model")
    return getattr(module, kind)([str(file), *map(str, more)], tokenizer, OmegaConf.create(node))


def raw_row(n: int, question: Any, answer: Any) -> dict[str, Any]:
    return {
        "data_source": "d",
        "prompt": [{"role": "user", "content": "<|audio|>"}],
        "audios": [question],
        "reward_model": {"style": "rule", "ground_truth": "seven"},
        "target_text": "three plus four is seven",
        "target_audio": answer,
        "extra_info": {"index": n + 1},
    }


def as_path(path: Path) -> Any:
    return path.name


def as_bytes(path: Path) -> Any:
    return path.read_bytes()


def as_array(path: Path) -> Any:
    wave, rate = soundfile.read(path, dtype="float32")
    return {"array": wave.tolist(), "sampling_rate": rate}


def as_stereo_array(path: Path) -> Any:
    wave, rate = soundfile.read(path, dtype="float32")
    return {"array": [wave.tolist(), wave.tolist()], "sampling_rate": rate}


def as_frames(path: Path) -> Any:
    wave, rate = soundfile.read(path, dtype="float32")
    return {"array": [[x, x] for x in wave.tolist()], "sampling_rate": rate}  # (T, 2), as soundfile has it


def as_struct(path: Path) -> Any:
    return {"bytes": path.read_bytes(), "path": path.name}


def test_verl_s_dataset_reads_what_was_prepared(made: tuple[Any, Path]) -> None:
    world, folder = made
    rows = dataset("SpokenDataset", folder / "out" / "train.parquet", world)
    assert len(rows) == 5 and len(rows.targets()) == 5
    row = rows[0]
    assert row["index"] == 0 and row["raw_prompt"][0]["content"].startswith("<|heard_")
    assert "target_speech" not in row


@pytest.mark.parametrize("info", [{"question": "q"}, {"index": 1}], ids=["no index", "one index for all"])
def test_a_row_finds_its_target_whatever_the_files_call_it(made: tuple[Any, Path], tmp_path: Path, info: Any) -> None:
    world, files = made[0], [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for number, file in enumerate(files):
        rows = [
            raw_row(n, None, None) | {"audios": None, "target_text": f"file {number} row {n}", "target_speech": [n]}
            for n in range(3)
        ]
        long = {"prompt": [{"role": "user", "content": "<|heard_3|>" * 99}]}  # left out, so places are not row numbers
        given = [row | {"extra_info": info} | (long if n == 1 else {}) for n, row in enumerate(rows)]
        datasets.Dataset.from_list(given).to_parquet(file)
    found = dataset("SpokenDataset", files[0], world, files[1])
    texts = [found.targets()[found[n]["index"]][0] for n in range(len(found))]
    assert texts == ["file 0 row 0", "file 0 row 2", "file 1 row 0", "file 1 row 2"]


@pytest.mark.parametrize("form", [as_path, as_bytes, as_array, as_stereo_array, as_frames, as_struct])
def test_recordings_in_any_form_become_the_codes_that_prepare_makes(
    made: tuple[Any, Path], tmp_path: Path, form: Any
) -> None:
    world, folder = made
    rows = [raw_row(n, form(folder / f"q{n}.wav"), form(folder / f"a{n}.wav")) for n in range(5)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "raw.parquet")
    raw = dataset("RawAudioDataset", tmp_path / "raw.parquet", world, audio_root=str(folder))
    ready = dataset("SpokenDataset", folder / "out" / "train.parquet", world)
    assert raw.targets() == ready.targets()
    assert [row["raw_prompt"] for row in raw] == [row["raw_prompt"] for row in ready]
    assert "audios" not in raw[0] and "target_audio" not in raw[0]


def test_datasets_own_audio_columns_are_read_without_its_decoder(made: tuple[Any, Path], tmp_path: Path) -> None:
    world, folder = made
    rows = [raw_row(n, as_struct(folder / f"q{n}.wav"), as_struct(folder / f"a{n}.wav")) for n in range(5)]
    plain = datasets.Dataset.from_list(rows)
    plain = plain.cast_column("audios", datasets.List(datasets.Audio()))
    plain.cast_column("target_audio", datasets.Audio()).to_parquet(tmp_path / "raw.parquet")
    kept = datasets.load_dataset("parquet", data_files=str(tmp_path / "raw.parquet"))["train"].features
    assert kept["target_audio"] == datasets.Audio()  # decoded when it is read, if nobody prevents it
    raw = dataset("RawAudioDataset", tmp_path / "raw.parquet", world)
    assert raw.targets() == dataset("SpokenDataset", folder / "out" / "train.parquet", world).targets()


def test_codes_that_are_there_stay_and_rows_without_recordings_pass(made: tuple[Any, Path], tmp_path: Path) -> None:
    world, folder = made
    first = raw_row(0, as_bytes(folder / "q0.wav"), None) | {"target_speech": [1, 2, 3, 4]}
    second = raw_row(1, None, None) | {"target_speech": [5, 6, 7, 8], "audios": None}
    second["prompt"] = [{"role": "user", "content": "<|heard_3|>"}]
    datasets.Dataset.from_list([first, second]).to_parquet(tmp_path / "raw.parquet")
    raw = dataset("RawAudioDataset", tmp_path / "raw.parquet", world)
    assert [codes for _, codes in raw.targets()] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert raw[1]["raw_prompt"] == second["prompt"]


def test_a_broken_recording_names_its_row(made: tuple[Any, Path], tmp_path: Path) -> None:
    world, folder = made
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(1600), 16000, format="WAV")
    rows = [raw_row(3, silence.getvalue(), as_bytes(folder / "a0.wav"))]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "raw.parquet")
    with pytest.raises(ValueError, match=r"extra_info\.index=4, audios\[0\]='bytes': it is silent"):
        dataset("RawAudioDataset", tmp_path / "raw.parquet", world)


@pytest.mark.parametrize(
    ("recording", "why"),
    [
        ({"array": [0.1] * 999}, "audios.0.='dict': is an array whose sampling_rate is None"),
        ({"array": [[[0.1]] * 9], "sampling_rate": 16000}, "is an array of shape"),
        ({"array": [float("nan")] * 999, "sampling_rate": 16000}, "999 of its samples are not finite"),
        ("nul\0.wav", "embedded null byte"),
        ("https://x.org/a.wav", "is a https: URL: nothing is downloaded"),
    ],
)
def test_whatever_a_recording_is_its_row_is_named(
    made: tuple[Any, Path], tmp_path: Path, recording: Any, why: str
) -> None:
    world, folder = made
    rows = [raw_row(3, recording, str(folder / "a0.wav"))]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "raw.parquet")
    with pytest.raises(ValueError, match=rf"row 0 with extra_info\.index=4, .*{why}"):
        dataset("RawAudioDataset", tmp_path / "raw.parquet", world)
    with pytest.raises(ValueError, match=rf"raw\.parquet, row 0: .*{why}"):
        checked(world, tmp_path / "raw.parquet", custom_cls={"name": "RawAudioDataset"})


def checked(world: Any, file: Path, **data: Any) -> dict[str, int]:
    """The preflight's count of a file's rows."""
    from wavalign_ext.checks.preflight import check_data
    from wavalign_ext.config import WavAlignConfig

    layout: Any = OmegaConf.to_container(OmegaConf.load(world.layout))
    spoken = {"layout": layout, "codec": world.codec, "input_codec": world.user_speech, "audio_root": str(file.parent)}
    node = {"train_files": str(file), "val_files": str(file), "max_prompt_length": 64, "max_response_length": 64}
    config = OmegaConf.create({"data": {**node, "spoken": spoken, **data}})
    tokenizer = AutoTokenizer.from_pretrained(world.folder / "model")
    return check_data(config, WavAlignConfig(layout=layout, codec=world.codec, audio_root=str(file.parent)), tokenizer)


def test_the_preflight_hears_rows_with_recordings(made: tuple[Any, Path], tmp_path: Path) -> None:
    world, folder = made
    for file in folder.glob("*.wav"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rows = [raw_row(n, f"q{n % 5}.wav", f"a{n % 5}.wav") for n in range(12)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "raw.parquet")
    raw = {"custom_cls": {"name": "RawAudioDataset"}}
    assert list(checked(world, tmp_path / "raw.parquet", **raw).values()) == [12]
    with pytest.raises(ValueError, match="row 0 holds recordings.*wavalign prepare.*RawAudioDataset"):
        checked(world, tmp_path / "raw.parquet")
    with pytest.raises(ValueError, match=r"extra_info\.index=1, target_text='.*': .*max_response_length=9"):
        checked(world, tmp_path / "raw.parquet", **raw, max_response_length=9)
    (tmp_path / "a3.wav").unlink()
    with pytest.raises(ValueError, match=r"extra_info\.index=4, target_audio='a3.wav'"):
        checked(world, tmp_path / "raw.parquet", **raw)


def test_settings_that_are_missing_are_asked_for(made: tuple[Any, Path], tmp_path: Path) -> None:
    world, folder = made
    datasets.Dataset.from_list([raw_row(0, "q0.wav", "a0.wav")]).to_parquet(tmp_path / "raw.parquet")
    with pytest.raises(ValueError, match=r"data\.spoken=.*'codec' is missing.*set \+data\.spoken="):
        dataset("RawAudioDataset", tmp_path / "raw.parquet", world, codec=None)


def test_the_preflight_refuses_rows_made_without_the_tokens_around_the_user_s_speech(
    made: tuple[Any, Path], tmp_path: Path
) -> None:
    """Files that were prepared before the layout had them, and whose prompts the model never saw."""
    world, folder = made
    layout: Any = OmegaConf.to_container(OmegaConf.load(world.layout))
    layout["chat"] = {"user_speech": {"begin": "<|begin_of_audio|>", "end": "<|end_of_audio|>"}}
    around = replace(world, layout=tmp_path / "around.yaml")
    OmegaConf.save(layout, around.layout)
    with pytest.raises(ValueError, match=r"train\.parquet, row 0: the user's speech is not between <\|begin_of_audio"):
        checked(around, folder / "out" / "train.parquet")
    options = [str(folder / "d.jsonl"), *around.options, "--jobs", "1", "--val-share", "0"]
    assert main([*options, "--out", str(tmp_path / "out")]) == 0
    assert list(checked(around, tmp_path / "out" / "train.parquet").values()) == [5]


def test_recordings_get_the_tokens_around_them_whenever_they_are_encoded(
    made: tuple[Any, Path], tmp_path: Path
) -> None:
    world, folder = made
    datasets.Dataset.from_list([raw_row(0, "q0.wav", "a0.wav")]).to_parquet(tmp_path / "raw.parquet")
    chat = {
        "system": "you are kind",
        "user_speech": {"before": "\n", "begin": "<|begin_of_audio|>", "end": "<|end_of_audio|>"},
    }
    layout: Any = OmegaConf.to_container(OmegaConf.load(world.layout))
    raw = dataset(
        "RawAudioDataset", tmp_path / "raw.parquet", world, layout=layout | {"chat": chat}, audio_root=str(folder)
    )
    system, user = raw[0]["raw_prompt"]
    assert system["content"] == "you are kind"
    assert re.fullmatch(r"\n<\|begin_of_audio\|>(<\|heard_\d+\|>)+<\|end_of_audio\|>", user["content"])


def test_a_worse_answer_is_encoded_as_the_better_one_is(
    made: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By ``wavalign prepare`` in the public release's field names (examples/sample_dpo.jsonl), and by the dataset."""
    world, folder = made
    line = small.dialogue("q0.wav", "a0.wav")
    line |= {"rejected_text": "two", "rejected_audio": "a1.wav", "chosen_score": 9, "rejected_score": 4.0}
    file = small.write_jsonl(folder / "pairs.jsonl", [line])
    options = [str(file), "--out", str(tmp_path / "out"), *world.options, "--jobs", "1", "--val-share", "0"]
    assert main(options) == 0
    found = dataset("SpokenDataset", tmp_path / "out/train.parquet", world)
    pair = found.pair(0)
    assert pair.rejected == ("two", list(dataset("SpokenDataset", folder / "out/train.parquet", world).targets()[1][1]))
    assert pair.chosen == found.targets()[0] and pair.scores == (9.0, 4.0)
    assert not [name for name in found[0] if name.startswith(("rejected", "chosen", "target"))]

    raw = raw_row(0, "q0.wav", "a0.wav") | {"rejected_text": "two", "rejected_audio": "a1.wav"}
    datasets.Dataset.from_list([raw]).to_parquet(tmp_path / "raw.parquet")
    assert (
        dataset("RawAudioDataset", tmp_path / "raw.parquet", world, audio_root=str(folder)).pair(0).rejected
        == pair.rejected
    )

    for change, why in (
        ({"rejected_audio": None}, "half of the worse answer"),
        ({"rejected_score": "low"}, "is no number"),
    ):
        small.write_jsonl(folder / "pairs.jsonl", [line | change])
        assert main(options) == 1 and why in capsys.readouterr().err


def test_a_row_without_a_pair_is_named(made: tuple[Any, Path]) -> None:
    world, folder = made
    with pytest.raises(ValueError, match="row 2 has no pair: give rejected_text and rejected_speech"):
        dataset("SpokenDataset", folder / "out/train.parquet", world).pair(2)
