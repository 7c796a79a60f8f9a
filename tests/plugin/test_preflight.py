"""Bad input ends a run with one line that names it, before Ray starts; so does a plugin that does not load."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import soundfile
import two_at_once
from hydra import compose, initialize_config_module
from omegaconf import DictConfig


def composed(*overrides: str) -> DictConfig:
    import verl  # noqa: F401  (loads the plugin)

    os.environ["VERL_PLATFORM"] = "cpu"
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", ["+recipe=wavalign", *overrides])


def refusal(config: DictConfig) -> str:
    """The line that the preflight ends with."""
    from wavalign_ext.checks.preflight import Preflight

    with pytest.raises(SystemExit) as caught:
        Preflight().on_job_start(config)
    line = str(caught.value)
    assert line.startswith("wavalign: ") and "\n" not in line
    return line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("wavalign.preference.tokens=sound", "preference.tokens='sound'.*one of all, text, speech"),
        ("wavalign.anchor.tokens=none", "anchor.tokens='none'"),
        ("wavalign.boundary_modality=maybe", "boundary_modality='maybe'"),
        ("wavalign.mixing.lambda_max=1.5", r"mixing.lambda_max=1.5.*\[0, 1\]"),
        ("wavalign.mixing.type=fixed", "mixing.value=None"),
        ("wavalign.reward.scale=[5,1]", "low < high"),
        ("+wavalign.reward.terms.telepathy={weight: 1}", "'telepathy' is not known.*asr_agreement"),
        ("wavalign.reward.terms.semantic.weight=-1", "weight=-1"),
        ("actor_rollout_ref.rollout.n=1", "rollout.n=1.*at least 2"),
        ("actor_rollout_ref.actor.use_kl_loss=false", "needs a reference policy"),
        ("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum", "loss_agg_mode"),
        ("actor_rollout_ref.actor.shuffle=true", "shuffle=True"),
        ("algorithm.adv_estimator=grpo", "adv_estimator='grpo'"),
        ("actor_rollout_ref.model.path=/no/such/model", "'/no/such/model' is not a folder"),
        ("data.train_files=/no/such/file.parquet", "'/no/such/file.parquet' is not a file"),
        ("actor_rollout_ref.rollout.max_model_len=1024", "max_model_len=1024 is more than the model's 512 positions"),
        ("data.max_response_length=200", "max_model_len=256 is less than data.max_prompt_length"),
        ("data.max_response_length=20", "more than data.max_response_length"),
        ("data.max_prompt_length=10", "more than data.max_prompt_length"),
        ("wavalign.layout.begin=nothing", "no token 'nothing'"),
        ("wavalign.codec.type=magic", "'magic' is not known.*mel_vq"),
        ("wavalign.codec.type=glm4_voice", "glm4_voice.*GLM-4-Voice"),
        ("layout@wavalign.layout=vita_audio_balance", r"no token '<\|audio_16383\|>': use this layout's own"),
        ("layout@wavalign.layout=kimi_audio", r"no token '<\|audio_16383\|>': use this layout's own"),
        ("layout@wavalign.layout=vita_audio_plus_vanilla", r"no token '<\|audio_16383\|>': use this layout's own"),
        (
            "wavalign.layout.user_speech={pattern: '<|audio_{}|>', count: 100}",
            "speech ids .* and user_speech ids .* overlap",
        ),
        ("wavalign.layout.pad='<|audio_3|>'", r"'<\|audio_3\|>' .* lies in the speech range"),
        ("wavalign.layout.schedule=[[0,8]]", r"schedule pair \(0, 8\) is not allowed: at least 1 text token"),
        ("wavalign.layout.schedule=[]", "schedule is empty"),
        ("wavalign.watchdog.poll_interval_s=0", "watchdog.poll_interval_s=0.*> 0"),
        ("wavalign.constrained_decoding=maybe", "constrained_decoding='maybe'"),
        ("wavalign.reward.routes.speech=[charm]", r"routes.speech=\['charm'\].*semantic"),
    ],
)
def test_a_bad_value_is_named(pocket: Path, override: str, message: str) -> None:
    assert re.search(message, refusal(composed(override)))


def test_the_default_passes(pocket: Path, capsys: pytest.CaptureFixture) -> None:
    from wavalign_ext.checks.preflight import Preflight

    Preflight().on_job_start(composed())
    printed = capsys.readouterr().out
    assert "train.parquet 1024 rows" in printed and "adaptive, at most 0.8" in printed


def test_a_finished_run_ends_well_and_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from wavalign_ext.checks.preflight import Preflight

    (tmp_path / "latest_checkpointed_iteration.txt").write_text("40")
    with pytest.raises(SystemExit) as caught:
        Preflight().on_run_start(composed(f"trainer.default_local_dir={tmp_path}"))
    assert caught.value.code == 0
    assert "raise it above 40" in capsys.readouterr().out


def edited_rows(pocket: Path, folder: Path, edit: dict) -> str:
    """A training file whose row 1 has been changed."""
    frame = pandas.read_parquet(pocket / "data" / "train.parquet").head(3)
    rows = frame.to_dict("records")
    for key, value in edit.items():
        if key == "extra_info":
            rows[1]["extra_info"] = dict(rows[1]["extra_info"], **value)
        else:
            rows[1][key] = value
    path = folder / "train.parquet"
    pandas.DataFrame(rows).to_parquet(path)
    return f"data.train_files={path}"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"prompt": [{"role": "user", "content": "what is one plus two"}]}, "row 1: the prompt has no audio"),
        ({"target_speech": []}, "row 1: no anchor target"),
        ({"target_text": ""}, "row 1: no anchor target"),
        ({"target_speech": [5, 9999]}, "train.parquet, row 1: .*code 9999 is out of range"),
        ({"prompt": None}, "row 1: prompt=None is no list of messages"),
        ({"prompt": []}, r"row 1: prompt=\[\] is no list of messages"),
        ({"reward_model": {"style": "rule", "ground_truth": None}}, "row 1: reward_model.ground_truth=None is no text"),
        ({"reward_model": {"style": "rule", "ground_truth": " "}}, "row 1: reward_model.ground_truth=' ' is no text"),
        ({"reward_model": None}, "row 1: reward_model.ground_truth=None is no text"),
        ({"extra_info": {"question_audio": "nul\0.wav"}}, "row 1: question_audio: audio .* cannot be read"),
        (
            {"extra_info": {"question_audio": "audio/train/lost.flac"}},
            "row 1: question_audio: audio .*lost.flac.*cannot be read",
        ),
    ],
)
def test_a_bad_row_is_named(pocket: Path, tmp_path: Path, edit: dict, message: str) -> None:
    assert re.search(message, refusal(composed(edited_rows(pocket, tmp_path, edit))))


def test_an_unreadable_wav_is_named(pocket: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"this is no sound")
    override = edited_rows(pocket, tmp_path, {"extra_info": {"question_audio": str(bad)}})
    assert re.search("row 1: question_audio: audio .*bad.wav.*cannot be read", refusal(composed(override)))
    soundfile.write(bad, np.zeros(0, dtype=np.float32), 16000)
    assert re.search("bad.wav.*is empty", refusal(composed(override)))
    soundfile.write(bad, np.array([0.1, np.nan], dtype=np.float32), 16000, subtype="FLOAT")
    assert re.search("row 1: question_audio: .*bad.wav.*not finite", refusal(composed(override)))


@pytest.mark.parametrize(("rows", "batch"), [(3, 4), (7, 8), (1, 1024)])
def test_fewer_rows_than_a_step_takes_are_named(pocket: Path, tmp_path: Path, rows: int, batch: int) -> None:
    path = tmp_path / "few.parquet"
    pandas.read_parquet(pocket / "data" / "train.parquet").head(rows).to_parquet(path)
    line = refusal(composed(f"data.train_files={path}", f"data.train_batch_size={batch}"))
    assert f"few.parquet holds {rows} rows: fewer than data.train_batch_size={batch}" in line


def test_a_file_that_is_no_parquet_is_named(pocket: Path, tmp_path: Path) -> None:
    whole = (pocket / "data" / "train.parquet").read_bytes()
    for data in (b"{}", b"PAR1", whole[: len(whole) // 2]):
        (tmp_path / "train.parquet").write_bytes(data)
        line = refusal(composed(f"data.train_files={tmp_path / 'train.parquet'}"))
        assert "train.parquet' is no whole parquet file" in line


def changed_model(pocket: Path, folder: Path) -> Path:
    model = folder / "model"
    shutil.copytree(pocket / "model", model)
    return model


def test_a_tokenizer_without_speech_tokens_is_named(pocket: Path, tmp_path: Path) -> None:
    model = changed_model(pocket, tmp_path)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace("audio_", "noise_")
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    assert re.search(r"no token '<\|audio_0\|>'", refusal(composed(f"actor_rollout_ref.model.path={model}")))


def test_a_vocabulary_that_differs_is_named(pocket: Path, tmp_path: Path) -> None:
    model = changed_model(pocket, tmp_path)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    line = refusal(composed(f"actor_rollout_ref.model.path={model}"))
    assert re.search(rf"has {config['vocab_size']} tokens and the model {config['vocab_size'] + 1}", line)


HEAD = ["actor_rollout_ref.model.lora_rank=4"]
UNFUSED = "actor_rollout_ref.model.use_fused_kernels=false"


@pytest.mark.parametrize("targets", ["[q_proj,lm_head]", "'.*(q_proj|head)'", "'.*'"])
def test_an_adapter_on_the_head_is_named(pocket: Path, targets: str) -> None:
    line = refusal(composed(*HEAD, f"actor_rollout_ref.model.target_modules={targets}"))
    assert re.search("target_modules=.*an adapter on the head 'lm_head', which the fused head cannot have", line)


def test_an_adapter_on_a_tied_head_is_named(pocket: Path, tmp_path: Path) -> None:
    model = changed_model(pocket, tmp_path)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    given = [*HEAD, UNFUSED, f"actor_rollout_ref.model.path={model}"]
    line = refusal(composed(*given, "actor_rollout_ref.model.target_modules=[lm_head]"))
    assert re.search("on the head 'lm_head', which shares its weight with the embedding", line)


def test_logits_that_are_changed_behind_the_head_are_named(pocket: Path, tmp_path: Path) -> None:
    model = changed_model(pocket, tmp_path)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"final_logit_softcapping": 30.0}))
    line = refusal(composed(f"actor_rollout_ref.model.path={model}"))
    assert re.search("the fused head cannot apply final_logit_softcapping=30.0 of 'qwen2'", line)


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj,v_proj]", ".*proj"])
def test_adapters_elsewhere_pass(pocket: Path, targets: str) -> None:
    from wavalign_ext.checks.preflight import Preflight

    Preflight().on_job_start(composed(*HEAD, f"actor_rollout_ref.model.target_modules={targets}"))


def run_main(*overrides: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "+recipe=wavalign", "trainer.total_training_steps=1"]
    inherited = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    return two_at_once.run([*command, *overrides], timeout=300, env=inherited | environment)


# A package whose import breaks the plugin, found before the real one.
BREAKS = """
import sys
class Break:
    def find_spec(self, name, path=None, target=None):
        if name == 'wavalign_ext.integration.patches':
            raise ImportError('broken on purpose')
sys.meta_path.insert(0, Break())
"""
REFUSED = {
    "wavalign.mixing.lambda_max=null": "wavalign.mixing.lambda_max=None is not allowed: a number in [0, 1]",
    "actor_rollout_ref.actor.kl_loss_coef=0.01": "actor_rollout_ref.actor.kl_loss_coef=0.01 would do nothing",
    "data.max_response_length=20": "more than data.max_response_length",  # found last: all before it passes
}


@pytest.fixture(scope="module")
def runs(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future]]:
    """verl's own command, with what ends it; two at a time."""
    folder = tmp_path_factory.mktemp("breaks")
    (folder / "sitecustomize.py").write_text(BREAKS)
    calls: dict[str, Any] = {override: partial(run_main, override) for override in REFUSED}
    calls |= {"broken": partial(run_main, PYTHONPATH=str(folder))}
    calls |= {"switched off": partial(run_main, VERL_USE_EXTERNAL_PLUGINS="none")}
    # Of two runs in one folder one is refused for that.
    places = [f"trainer.default_local_dir={folder / str(number)}" for number in range(len(calls))]
    calls = {name: partial(call, place) for (name, call), place in zip(calls.items(), places, strict=True)}
    with two_at_once.started(calls) as found:
        yield found


def test_a_plugin_that_fails_stops_the_run_with_its_cause(runs: dict[str, Future]) -> None:
    done = runs["broken"].result()
    assert done.returncode != 0
    assert "wavalign: the plugin failed to load" in done.stderr and "broken on purpose" in done.stderr
    assert "Traceback" in done.stderr  # loud where it happened
    assert "ray init" not in done.stdout


def test_a_plugin_that_is_switched_off_stops_the_run(runs: dict[str, Future]) -> None:
    done = runs["switched off"].result()
    assert done.returncode != 0
    assert "verl did not load the plugin" in done.stderr and "ray init" not in done.stdout


@pytest.mark.parametrize(("override", "message"), REFUSED.items())
def test_verl_s_own_command_ends_with_one_line(runs: dict[str, Future], override: str, message: str) -> None:
    done = runs[override].result()
    assert done.returncode == 1 and "ray init" not in done.stdout
    assert [line for line in done.stderr.splitlines() if message in line] == done.stderr.splitlines()[-1:]
    assert "Traceback" not in done.stderr
