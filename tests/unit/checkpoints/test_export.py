"""An exported run loads in transformers and vLLM and says what the trained model said."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ask_vllm import vllm_logits
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from wavalign_ext.checkpoints import export
from wavalign_ext.speech.layout import load_layout

LAYOUT = {
    "name": "small",
    "speech": {"pattern": "<a{}>", "count": 5},
    "schedule": [[1, 2]],
    "eos": ["<end>"],
    "pad": "<pad>",
    "counts_boundaries": False,
}
CONFIG = {
    "wavalign": {"layout": LAYOUT},
    "actor_rollout_ref": {"rollout": {"temperature": 0.7, "top_p": 0.9, "top_k": -1}},
    "data": {"max_response_length": 64},
}
SPECIALS = ["<pad>", "<end>", *(f"<a{n}>" for n in range(5))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model folder; an odd vocabulary, so that the ranks' parts differ in size."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Qwen2Tokenizer()
    tokenizer.add_tokens(["hello", "there", *SPECIALS], special_tokens=True)
    tokenizer.eos_token, tokenizer.pad_token = "<end>", "<pad>"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 1 - len(tokenizer) % 2,
        hidden_size=64,  # vLLM's CPU attention wants heads of 32
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        max_position_embeddings=128,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def run_folder(folder: Path, step: int) -> Path:
    """An empty checkpoint folder of a run, with the configuration that Hydra keeps."""
    (folder / "hydra").mkdir(parents=True, exist_ok=True)
    (folder / "hydra" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    actor = folder / f"global_step_{step}" / "actor"
    actor.mkdir(parents=True)
    return actor


def write_parts(weights: dict[str, torch.Tensor], actor: Path, ranks: int = 2) -> None:
    """Each rank's file as FSDP2 leaves it: DTensors sharded by rows. No other process takes part."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    for rank in range(ranks):
        init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
        mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",))
        parts = {}
        for name, whole in weights.items():
            local = whole.chunk(ranks)[rank].clone()
            parts[name] = DTensor.from_local(
                local, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
            )
        torch.save(parts, actor / f"model_world_size_{ranks}_rank_{rank}.pt")
        destroy_process_group()
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": ranks}))


def copy_settings(model: Path, actor: Path) -> None:
    shutil.copytree(model, actor / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.fixture(scope="module")
def trained(model: Path) -> Any:
    """The model after some training, in fp32: weights that bf16 cannot hold."""
    trained = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
    return trained


@pytest.fixture(scope="module")
def run(model: Path, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for step, scale in ((2, 0.5), (10, 1.0)):
        actor = run_folder(folder, step)
        copy_settings(model, actor)
        write_parts({name: weight * scale for name, weight in trained.state_dict().items()}, actor)
    return folder


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def test_the_latest_one_is_what_a_resume_would_take(run: Path) -> None:
    tracker = run / "latest_checkpointed_iteration.txt"
    for text, step in (("2", 2), ("10", 10), ("3", 10)):
        tracker.write_text(text)
        assert export.find_checkpoint(run).parent.name == f"global_step_{step}"
    tracker.unlink()
    assert export.find_checkpoint(run).parent.name == "global_step_10"


PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])


def test_the_newest_checkpoint_is_exported_exactly(run: Path, trained: Any, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert export.main([str(run), str(target)]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(target)  # in the dtype that the folder names
    assert loaded.dtype == torch.float32
    wanted = logits(trained, PROMPT)
    torch.testing.assert_close(logits(loaded.eval(), PROMPT), wanted, rtol=0, atol=1e-6)
    rounded = logits(copy.deepcopy(trained).bfloat16().float(), PROMPT)
    assert (rounded - wanted).abs().max() > 1e-3  # rounding would have been seen

    layout = load_layout(target / export.LAYOUT_FILE)
    tokenizer = AutoTokenizer.from_pretrained(target)
    end, pad = tokenizer.convert_tokens_to_ids(["<end>", "<pad>"])
    assert layout.resolve(tokenizer).eos_ids == (end,)
    assert json.loads((target / "generation_config.json").read_text()) == {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "max_new_tokens": 64,
        "eos_token_id": [end],
        "pad_token_id": pad,
    }
    assert loaded.generation_config.eos_token_id == [end]


def test_a_step_and_a_dtype_can_be_chosen(run: Path, trained: Any, tmp_path: Path) -> None:
    assert export.main([str(run), str(tmp_path / "out"), "--step", "2", "--dtype", "bfloat16"]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    half = trained.state_dict()["model.norm.weight"] * 0.5
    torch.testing.assert_close(loaded.state_dict()["model.norm.weight"], half.bfloat16())


def test_lora_is_merged(model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted: Any = get_peft_model(base, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "up_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    actor = run_folder(tmp_path / "run", 1)
    copy_settings(model, actor)
    (actor / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM"}))
    write_parts(adapted.state_dict(), actor)
    assert export.main([str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    wanted = logits(adapted.eval(), PROMPT)
    with adapted.disable_adapter():
        assert (logits(adapted, PROMPT) - wanted).abs().max() > 0.01
    torch.testing.assert_close(logits(loaded, PROMPT), wanted, rtol=0, atol=1e-4)
    assert not (tmp_path / "out" / "lora_adapter").exists()


def test_what_cannot_be_exported_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refusal(*argv: str) -> str:
        assert export.main(argv) == 1
        line = capsys.readouterr().err
        assert line.startswith("wavalign export: ") and line.count("\n") == 1
        return line

    out = str(tmp_path / "out")
    assert "no global_step_N" in refusal(str(tmp_path), out)
    assert "step 3 is not in" in refusal(str(run), out, "--step", "3")
    assert "it has 2, 10" in refusal(str(run), out, "--step", "3")
    assert "is not empty" in refusal(str(run), str(run))
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "global_step_10" / "actor" / "model_world_size_2_rank_1.pt").unlink()
    assert "rank 1 of 2 is missing" in refusal(str(broken), out)
    (broken / "global_step_10" / "actor" / "fsdp_config.json").unlink()
    assert "no fsdp_config.json" in refusal(str(broken), out)
    (broken / "hydra" / "config.yaml").unlink()
    assert "is not a WavAlign run" in refusal(str(broken), out, "--step", "2")
    assert not Path(out).exists()


ENGINE = """
import sys, torch, os
sys.path.insert(0, sys.argv[1])
from replay import make_worker
model, actor, out, *overrides = sys.argv[2:]
torch.set_num_threads(1)
worker = make_worker(model, "1", overrides)
torch.manual_seed(3)
with torch.no_grad():
    for name, parameter in worker.engine.module.named_parameters():
        if parameter.requires_grad:
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            local.add_(torch.randn_like(local) * 1e-2)
with worker.engine.eval_mode(), torch.no_grad():
    logits = worker.engine.module(input_ids=torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])).logits
worker.save_checkpoint(actor)
if int(os.environ["RANK"]) == 0:
    torch.save(logits, out)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("actor_rollout_ref.model.lora_rank=4",)], ids=["all weights", "LoRA"])
def test_a_checkpoint_of_verls_engine(model: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Two ranks of verl's FSDP2 engine save; the export says what they said."""
    actor, out = run_folder(tmp_path / "run", 1), tmp_path / "logits.pt"
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", str(script)]
    command += [str(Path(__file__).parents[2] / "plugin"), str(model), str(actor), str(out)]
    done = subprocess.run(
        [*command, *overrides],
        env=dict(os.environ, VERL_PLATFORM="cpu", OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert export.main([str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(loaded, PROMPT), torch.load(out), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_vllm_loads_it_and_agrees(run: Path, trained: Any, tmp_path: Path) -> None:
    assert export.main([str(run), str(tmp_path / "out")]) == 0
    found = vllm_logits(tmp_path / "out", PROMPT.tolist(), tmp_path / "logits.pt")
    torch.testing.assert_close(found, logits(trained, PROMPT)[:, -1], rtol=0, atol=1e-4)
