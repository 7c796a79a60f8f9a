"""``wavalign doctor``: each check on something sound and on something broken; what fails says what to do."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_world as small
import torch
from omegaconf import OmegaConf

from wavalign_ext.checks import doctor
from wavalign_ext.checks.doctor import FAIL, OK, SKIP, WARN, DoctorContext, Finding
from wavalign_ext.config import WavAlignConfig
from wavalign_ext.integration import versions


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small world with a model of two layers."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    world = small.build(tmp_path_factory.mktemp("world"))
    size = len(world.setup().tokenizer)
    config = Qwen2Config(vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    config.num_key_value_heads, config.intermediate_size = 2, 16
    Qwen2ForCausalLM(config).save_pretrained(world.folder / "model")
    return world


@pytest.fixture
def context(world: Any, tmp_path: Path) -> DoctorContext:
    """A configuration as the recipe composes it, of the keys that the checks read."""
    wav = {
        "layout": OmegaConf.to_container(OmegaConf.load(world.layout)),
        "codec": world.codec,
        "input_codec": world.user_speech,
        "reward": {"terms": {"semantic": {"weight": 1.0}}},
    }
    config = {
        "actor_rollout_ref": {"model": {"path": str(world.folder / "model"), "trust_remote_code": False}},
        "trainer": {"default_local_dir": str(tmp_path / "run"), "max_actor_ckpt_to_keep": 2, "device": "cpu"},
        "wavalign": wav,
    }
    return DoctorContext([], config=OmegaConf.create(config), wav=WavAlignConfig.from_mapping(wav))


def states(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def test_versions_are_compared_with_the_installed_package_s_own_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(states(doctor.check_versions(DoctorContext([]))).values()) == {OK}
    wishes = ["soxr<0.1", "no-such-package>=1", "numpy", "pytest; extra == 'dev'", "verl"]
    monkeypatch.setattr(metadata, "requires", lambda _: wishes)
    monkeypatch.setattr(versions, "TESTED", {"verl": "==0.1.*"})
    found = {finding.name: finding for finding in doctor.check_versions(DoctorContext([]))}
    assert {name: finding.state for name, finding in found.items()} == {
        "python": OK,
        "soxr": FAIL,
        "no-such-package": FAIL,
        "numpy": OK,
        "verl": FAIL,
    }
    assert found["soxr"].text.endswith("(wanted: <0.1)") and "pip install 'soxr<0.1'" in found["soxr"].remedy
    assert "is not installed" in found["no-such-package"].text
    assert "0.9.1 (wanted: ==0.1.*)" in found["verl"].text and "WAVALIGN_UNTESTED_VERSIONS=1" in found["verl"].remedy


def test_a_plugin_that_verl_did_not_load_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(doctor.check_plugin(DoctorContext([]))) == {"plugin": OK}
    monkeypatch.delitem(sys.modules, "wavalign_ext.plugin")
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    finding = next(doctor.check_plugin(DoctorContext([])))
    assert finding.state == FAIL and "=none" in finding.text and "pip install -e" in finding.remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without an accelerator")
def test_a_platform_that_is_not_there_fails() -> None:
    assert states(doctor.check_accelerator(DoctorContext([]))) == {"accelerator": OK}
    finding = next(doctor.check_accelerator(DoctorContext([], platform="cuda")))
    assert finding.state == FAIL and finding.text.startswith("VERL_PLATFORM=cuda, but none is visible")


def test_a_model_and_its_layout(context: DoctorContext, world: Any, tmp_path: Path) -> None:
    assert states(doctor.check_model(context)) == {"model": OK, "layout": OK}
    assert context.parameters > 10_000 and context.tokenizer is not None
    context.config.actor_rollout_ref.model.path = str(tmp_path)
    finding = next(doctor.check_model(context))
    assert finding.state == FAIL and "actor_rollout_ref.model.path" in finding.remedy
    weightless = tmp_path / "weightless"
    weightless.mkdir()
    for file in (world.folder / "model").glob("*.json"):
        (weightless / file.name).write_bytes(file.read_bytes())
    context.config.actor_rollout_ref.model.path = str(weightless)
    assert states(doctor.check_model(context))["model"] == FAIL


def test_a_pocket_that_is_not_built_is_no_failure(
    context: DoctorContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wavalign_ext.pocket import pocket_dir

    monkeypatch.setenv("WAVALIGN_CACHE", str(tmp_path))
    context.config.actor_rollout_ref.model.path = str(pocket_dir() / "model")
    assert states(doctor.check_model(context)) == {"model": WARN}
    for check in (doctor.check_codec, doctor.check_data, doctor.check_rewards):
        assert set(states(check(context)).values()) == {SKIP}


def test_codecs_are_heard_and_compared_with_the_layout(context: DoctorContext) -> None:
    list(doctor.check_model(context))
    assert states(doctor.check_codec(context)) == {"codec": OK, "input codec": OK}
    object.__setattr__(context.layout, "speech_end", context.layout.speech_end + 1)
    finding = next(doctor.check_codec(context))
    assert finding.state == FAIL and "a codec with 17 codes" in finding.remedy


def test_disk_and_memory_are_judged_by_the_model_s_size(
    context: DoctorContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=16 * doctor.GIB))
    context.parameters = 1_000_000
    assert states(doctor.check_disk_and_memory(context)) == {"disk": OK, "memory": OK}
    context.parameters = 10**15
    found = list(doctor.check_disk_and_memory(context))
    assert [finding.state for finding in found] == [FAIL, FAIL]
    assert "trainer.default_local_dir" in found[0].remedy


# --- the judge ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Any]:
    """An endpoint that knows one key and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        asked: list[str] = []

        def do_GET(self) -> None:
            self.asked.append(self.path)
            right = self.headers.get("Authorization") == "Bearer secret-key"
            self.send_response(200 if right else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"data": []}).encode())

        def log_message(self, *_: Any) -> None: ...

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_judge_is_asked_for_its_models(server: Any, context: DoctorContext, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = {"url": f"http://127.0.0.1:{server.server_port}/v1/", "api_key_env": "SOME_KEY"}
    context.wav.reward.terms["holistic"] = {"type": "judge", "aspect": "holistic", "model": "m", "endpoint": endpoint}
    monkeypatch.setenv("SOME_KEY", "secret-key")
    found = list(doctor.check_rewards(context))
    assert [(finding.name, finding.state) for finding in found] == [("rewards", OK), ("judge", OK)]
    assert server.RequestHandlerClass.asked == ["/v1/models"]
    monkeypatch.setenv("SOME_KEY", "wrong-key")
    finding = list(doctor.check_rewards(context))[1]
    assert finding.state == FAIL and "SOME_KEY" in finding.remedy and "wrong-key" not in repr(finding)
    server.shutdown()
    server.server_close()
    finding = list(doctor.check_rewards(context))[1]
    assert finding.state == FAIL and "endpoint.url" in finding.remedy


# --- the whole ------------------------------------------------------------------------------------------------------


def test_the_recipe_is_composed_with_the_overrides_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    context = DoctorContext(["wavalign.kl.speech=0.5"])
    assert states(doctor.check_recipe(context)) == {"recipe": OK, "platform": OK}
    assert context.wav.kl.speech == 0.5
    with pytest.raises(ValueError, match=r"preference\.tokens='noise'"):
        list(doctor.check_recipe(DoctorContext(["wavalign.preference.tokens=noise"])))


def test_a_check_that_breaks_fails_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def breaks(_: DoctorContext) -> Iterator[Finding]:
        raise ValueError("codec 'x':\n no such folder")
        yield

    def fine(_: DoctorContext) -> Iterator[Finding]:
        yield Finding("fine", OK, "good")
        yield Finding("so so", WARN, "hm", "perhaps do this")

    monkeypatch.setattr(doctor, "CHECKS", {"codec": breaks, "other": fine})
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "FAIL  codec        codec 'x': no such folder" in said and "→ correct what the message names" in said
    assert "ok    fine" in said and "→ perhaps do this" in said and "wavalign: 1 check failed" in said
    monkeypatch.setattr(doctor, "CHECKS", {"other": fine})
    assert doctor.main([]) == 0
