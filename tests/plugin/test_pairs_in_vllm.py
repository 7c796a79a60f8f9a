"""Both streams' log-probs in stock vLLM are those of the taught model, whatever the engine does with the requests."""

import json
from pathlib import Path
from typing import Any

import forked
import pytest

HERE = Path(__file__).parent
NEAR = 1e-5


def run(which: str, folder: Path, **shape: Any) -> dict[str, Any]:
    out = folder / "found.json"
    given = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "SHAPE": json.dumps(shape)}
    arguments = [which, str(folder / "model"), str(out)]
    done = forked.run(HERE / "pairs_in_vllm.py", *arguments, timeout=600, **given)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(out.read_text())


def test_sixteen_at_once_and_after_an_update_and_with_settings_of_all_kinds(tmp_path: Path) -> None:
    found = run("whole", tmp_path, shared_rows=2)
    print({name: value for name, value in found.items() if isinstance(value, float)})
    assert max(found["whole"], found["whole updated"], found["mixed"]) < NEAR
    assert found["again"] and found["whole ended"] > 0  # seeds give the same answers; some end by the audio
    assert len({tuple(ids) for ids in found["whole answers"]}) == 16
    # rows: greedy text with audio at 0.8 · drawn text with greedy audio · with audio of top-k 1 · both greedy
    text, audio = found["own"]["text"], found["own"]["audio"]
    assert text[0] == text[3] == 1 and audio[1] == audio[2] == audio[3] == 1
    assert max(text[1], text[2], audio[0]) < 0.9


@pytest.mark.slow
def test_prompts_that_are_cut_or_computed_anew_or_found_in_the_cache(tmp_path: Path) -> None:
    found = run("whole,cut,preempted,prefix", tmp_path)
    print({name: value for name, value in found.items() if isinstance(value, float | int)})
    assert found["preemptions"] > 0 and found["cached"] > 0 and found["cached of other audio"] == 0
    for name in ("whole", "cut", "preempted", "prefix", "other audio"):
        assert found[name] < NEAR and found.get(f"{name} updated", 0) < NEAR, name
    assert found["cut answers"] == found["whole answers"]
    assert found["prefix answers again"] == found["prefix answers"]


@pytest.mark.slow
def test_the_vocabulary_of_kimi_audio_whose_pairs_need_all_of_32_bits(tmp_path: Path) -> None:
    from two_streams import KIMI

    found = run("whole", tmp_path, **KIMI, shared_rows=3)
    print({name: value for name, value in found.items() if isinstance(value, float)})
    assert max(found["whole"], found["whole updated"], found["mixed"]) < NEAR
