"""What a judge's settings may be, without a server: bad ones are named at once, keys are not; and its cache."""

import json
import traceback
from pathlib import Path
from typing import Any

import pytest

from wavalign_ext.rewards import build_terms
from wavalign_ext.rewards.judge import ScoreCache

URL = "http://127.0.0.1:9/v1"


def build(endpoint: dict[str, Any], judge: dict[str, Any] | None = None) -> None:
    build_terms({"judge": {"aspect": "holistic", "model": "m", "endpoint": {"url": URL, **endpoint}} | (judge or {})})


@pytest.mark.parametrize(
    ("judge", "endpoint", "message"),
    [
        ({"aspect": "musical"}, {}, "aspect='musical'.*holistic, semantic, acoustic"),
        ({"aspect": "acoustic", "audio": False}, {}, "audio=False.*'semantic'"),
        ({"aspect": "holistic", "audio": False}, {}, "audio=False.*'semantic'"),
        ({"tone": 1}, {}, "tone.*its arguments are: aspect, model"),
        ({}, {"url": "host/v1"}, "url='host/v1'.*https://host/v1"),
        ({}, {"proxy": 1}, "endpoint.proxy is not known: one of url"),
        ({}, {"concurrency": 0}, "concurrency=0.*whole number ≥ 1"),
        ({}, {"retries": 1.5}, "retries=1.5.*whole number ≥ 0"),
        ({}, {"deadline_s": float("nan")}, "deadline_s=nan"),
        ({}, {"request_s": "10"}, "request_s='10'"),
        ({}, {"api_key_env": "WAVALIGN_NO_SUCH_KEY"}, "'WAVALIGN_NO_SUCH_KEY' is not set: export it"),
        ({"endpoint": {}}, {}, "endpoint.url is missing"),
        ({"endpoint": "http://host/v1"}, {}, "endpoint of type str.*{url: "),
    ],
)
def test_a_bad_setting_is_named(judge: dict, endpoint: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(endpoint, judge)


@pytest.mark.parametrize("pasted", ["sk-geheim-1234", "gsk_geheim1234"])
def test_a_key_pasted_where_its_name_belongs_is_not_repeated(pasted: str) -> None:
    urls = f"http://me:{pasted}@host/v1", f"http://host/?k={pasted}", f"me:{pasted}@host"
    for endpoint in ({"api_key_env": pasted}, *({"url": url} for url in urls)):
        with pytest.raises(ValueError, match="api_key_env") as caught:
            build(endpoint)
        assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("value", ["", "  ", "sk-geheim\nHost: x", "sk-geheim-ü"])
def test_a_key_that_cannot_be_sent_is_refused_at_once(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ValueError, match="JUDGE_KEY") as caught:
        build({"api_key_env": "JUDGE_KEY"})
    assert "geheim" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("spoiled", ["", "{", "[]", '{"score": null}', '{"score": NaN}', '{"score": 9}', "\xff"])
def test_a_spoiled_cache_file_is_no_score(tmp_path: Path, spoiled: str) -> None:
    cache = ScoreCache(tmp_path / "new" / "folder")
    assert cache.get("abc") is None
    cache.put("abc", 4.0)
    assert cache.get("abc") == 4.0
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    file.write_bytes(spoiled.encode("latin-1"))
    assert cache.get("abc") is None
    cache.put("abc", 2.0)
    assert cache.get("abc") == 2.0 and json.loads(file.read_text()) == {"score": 2.0}


def test_a_disk_that_refuses_loses_no_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ScoreCache(tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file where the folder was")
    cache.put("abc", 4.0)
    assert cache.get("abc") is None and "cannot be written" in caplog.text
