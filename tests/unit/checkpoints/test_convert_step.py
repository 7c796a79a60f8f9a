"""Step-Audio 2 mini: converted, what its published class computes; exported, bit for bit what was published.

Names, shapes and the order of operations are those of the checkpoint's modeling_step_audio_2.py (AudioEncoder, Adaptor,
StepAudio2ForCausalLM.forward) and configuration_step_audio_2.py. The vocabulary is a twin's (tests/support/twins.py).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from formula_weights import speechlike, weight
from published_again import assert_bit_equal
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from twins import TWINS, build_tokenizer

from wavalign_ext.checkpoints import ears
from wavalign_ext.checkpoints.convert import convert
from wavalign_ext.checkpoints.plan import ConvertError
from wavalign_ext.speech.chat import prompt_ids
from wavalign_ext.speech.encoders import load_encoder
from wavalign_ext.speech.layout import load_layout

HIDDEN, SIZE, LAYERS = 64, 512, 1
ENCODER = dict(n_mels=128, n_audio_ctx=1500, n_audio_state=SIZE, n_audio_head=8, n_audio_layer=LAYERS)
TEXT: dict[str, Any] = dict(
    vocab_size=TWINS["step_audio2_mini"].vocab_size,
    hidden_size=HIDDEN,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
)


def ear_shapes() -> dict[str, tuple[int, ...]]:
    """Of ``encoder.*`` and ``adapter.*``."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (SIZE, 128, 3),
        "encoder.conv1.bias": (SIZE,),
        "encoder.conv2.weight": (SIZE, SIZE, 3),
        "encoder.conv2.bias": (SIZE,),
        "encoder.positional_embedding.weight": (1500, SIZE),
        "encoder.after_norm.weight": (SIZE,),
        "encoder.after_norm.bias": (SIZE,),
        "adapter.conv.weight": (SIZE, SIZE, 3),
        "adapter.conv.bias": (SIZE,),
        "adapter.linear1.weight": (2048, SIZE),
        "adapter.linear1.bias": (2048,),
        "adapter.linear2.weight": (HIDDEN, 2048),
        "adapter.linear2.bias": (HIDDEN,),
    }
    square, wide = (SIZE, SIZE), (4 * SIZE, SIZE)
    parts = {f"attn.{name}": square for name in ("query", "key", "value", "out")}
    for name, shape in (parts | {"mlp.0": wide, "mlp.2": wide[::-1], "attn_ln": (SIZE,), "mlp_ln": (SIZE,)}).items():
        shapes[f"encoder.blocks.0.{name}.weight"] = shape
        if name != "attn.key":
            shapes[f"encoder.blocks.0.{name}.bias"] = shape[:1]
    return shapes


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("step")
    build_tokenizer("step_audio2_mini", folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 151690, "content": "<audio_patch>"})
    vocabulary = content["model"]["vocab"]
    del vocabulary["<unused_151690>"]
    vocabulary["<audio_patch>"] = 151690
    (folder / "tokenizer.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    tensors = dict(Qwen2ForCausalLM(Qwen2Config(**TEXT, tie_word_embeddings=False)).state_dict())
    tensors |= {name: weight(name, shape) for name, shape in ear_shapes().items()}
    save_file({n: t.bfloat16().contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    heard = ENCODER | dict(llm_dim=HIDDEN, kernel_size=3, adapter_stride=2)
    config = dict(model_type="step_audio_2", architectures=["StepAudio2ForCausalLM"], torch_dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(config | dict(audio_encoder_config=heard, text_config=TEXT)))
    return folder


@pytest.fixture(scope="module")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "model"
    assert convert("step-audio2-mini", published, target).layout == "step_audio2_mini"
    return target


def test_it_answers_as_the_published_order_of_operations_does(published: Path, converted: Path) -> None:
    """The adapter's conv, GELU, linear1, ReLU and linear2 behind the encoder; its outputs from <audio_start> on."""
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(converted)
    layout = load_layout("step_audio2_mini").resolve(tokenizer, model.config.vocab_size)
    assert (model.config.audio_token_id, layout.speech_start, model.config.audio_projector) == (151690, 151696, "step")
    heard = load_encoder({"type": "step_audio2", "path": converted / ears.FOLDER, "dtype": "float32"}).encode(
        speechlike(26)[:16161]
    )
    said = [{"role": "user", "content": layout.user_speech_prompt([0] * len(heard))}]
    ids = prompt_ids(tokenizer, said)
    source = {name: value.float() for name, value in load_file(published / "model.safetensors").items()}
    adapter = {name.removeprefix("adapter."): value for name, value in source.items() if name.startswith("adapter.")}
    x = F.linear(heard, adapter["linear1.weight"], adapter["linear1.bias"]).relu()
    x = F.linear(x, adapter["linear2.weight"], adapter["linear2.bias"])
    embedded = source["model.embed_tokens.weight"][ids]
    at = tokenizer.convert_ids_to_tokens(ids).index("<audio_start>") + 1
    embedded[at : at + len(heard)] = x
    plain = Qwen2ForCausalLM(Qwen2Config(**TEXT, tie_word_embeddings=False)).eval()
    plain.load_state_dict({name: source[name] for name in plain.state_dict()})
    with torch.no_grad():
        found = model(torch.tensor([ids]), audio_features=heard).logits
        expected = plain(inputs_embeds=embedded[None]).logits
        other = model(torch.tensor([ids]), audio_features=heard.flip(0)).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (other - found).abs().max() > 1e-3


def test_published_again_it_is_bit_for_bit_what_it_was(published: Path, converted: Path, tmp_path: Path) -> None:
    assert_bit_equal(published, converted, tmp_path / "trained", torch.bfloat16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "type 'qwen2', not 'step_audio_2'"),
        (
            {"audio_encoder_config": ENCODER | {"n_audio_state": 1280}},
            "n_audio_state=1280, not 512: give Step-Audio 2 m",
        ),
        ({"audio_encoder_config": {}}, "config.json.* has no 'n_audio_state': give the published folder"),
    ],
)
def test_another_model_is_refused(published: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = json.loads((published / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConvertError, match=message):
        convert("step-audio2-mini", tmp_path, tmp_path / "new")
