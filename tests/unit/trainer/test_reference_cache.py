"""The reference's log-probs by content: found again by another run, apart for another model, whole or not at all."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAVALIGN_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_run_has_scored_the_next_one_finds(dtype: torch.dtype) -> None:
    from wavalign_ext.trainer.reference_cache import ReferenceCache, content

    name, other = content([1, 2], [3]), content([1], [2, 3])
    logp = torch.tensor([-0.125, -3.5], dtype=dtype)
    ReferenceCache("model").update([(name, logp)])
    again = ReferenceCache("model")
    assert name in again and other not in again and name not in ReferenceCache("another")
    found = again[name]
    assert found.dtype == torch.float32 and torch.equal(found, logp.float())
    found += 1  # a reader's tensor is its own
    assert torch.equal(again[name], logp.float())
    with pytest.raises(KeyError):
        again[other]


def test_a_chunk_that_fails_leaves_nothing(cache_folder: Path) -> None:
    from wavalign_ext.trainer.reference_cache import ReferenceCache

    def broken():
        yield "one", torch.zeros(2)
        raise RuntimeError("the worker is gone")

    cache = ReferenceCache("model")
    with pytest.raises(RuntimeError, match="gone"):
        cache.update(broken())
    assert "one" not in cache and cache.path.parent == cache_folder / "reference"


def test_an_answer_is_named_by_prompt_answer_and_what_is_heard() -> None:
    from wavalign_ext.trainer.reference_cache import content

    names = [content([1, 2], [3]), content([1], [2, 3]), content([1, 2], [3], b"a"), content([1, 2], [3], b"b")]
    assert len(set(names)) == 4 and content([1, 2], [3], b"a") == names[2]


def test_a_model_is_named_by_its_weights_its_configuration_and_how_it_computes(tmp_path: Path) -> None:
    from wavalign_ext.trainer.reference_cache import model_fingerprint

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    first = model_fingerprint(folder, {"dtype": "fp32"})
    (folder / "tokenizer.json").write_text("not of the model")
    copied = tmp_path / "moved"
    folder.rename(copied)
    assert model_fingerprint(copied, {"dtype": "fp32"}) == first  # wherever the folder lies
    assert model_fingerprint(copied, {"dtype": "bf16"}) != first
    for file, changed in (("model.safetensors", b"others"), ("config.json", b'{"rope_theta": 1}')):
        kept = (copied / file).read_bytes()
        (copied / file).write_bytes(changed)
        assert model_fingerprint(copied, {"dtype": "fp32"}) != first, file
        (copied / file).write_bytes(kept)
    assert model_fingerprint(copied, {"dtype": "fp32"}) == first
