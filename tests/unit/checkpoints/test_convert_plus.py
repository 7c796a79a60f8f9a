"""VITA-Audio Plus-Vanilla: converted, what it was before; exported, bit for bit what was published.

Names and shapes are those of vita_audio/models/qwen2_mtp_sensevoice_v4_48_3 (modeling_qwen2.py: ``model.audio_model``,
``model.audio_projection``; resampler_projector.py; config_7B_mtp0.json) of VITA-MLLM/VITA-Audio.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from formula_weights import tensors_of
from safetensors.torch import load_file, save_file
from sensevoice_folder import SMALL, write_cmvn
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from twins import build_tokenizer

from wavalign_ext.checkpoints import ears
from wavalign_ext.checkpoints.convert import convert
from wavalign_ext.checkpoints.plan import ConvertError
from wavalign_ext.speech.encoders import load_encoder, sanm

HIDDEN, SIZE, VOCABULARY = 64, 512, 168072


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plus")
    build_tokenizer("vita_audio_plus_vanilla", folder)
    sizes: dict[str, Any] = dict(vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False, rope_theta=1e6)
    torch.manual_seed(0)
    tensors = dict(Qwen2ForCausalLM(Qwen2Config(**sizes)).state_dict())
    heard = tensors_of(sanm.SenseVoice(SMALL)) | {"ctc.ctc_lo.weight": torch.zeros(30, SMALL.size)}
    tensors |= {f"model.audio_model.model.{name}": value for name, value in heard.items()}
    tensors |= {
        "model.audio_projection.pre_proj_layernorm.weight": torch.rand(SIZE),
        "model.audio_projection.pre_proj_layernorm.bias": torch.rand(SIZE),
        "model.audio_projection.mlp.0.weight": torch.randn(HIDDEN, SIZE),
        "model.audio_projection.mlp.2.weight": torch.randn(HIDDEN, HIDDEN),
    }
    tensors = {name: value.bfloat16().contiguous() for name, value in tensors.items()}
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in files.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, some in files.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = sizes | {"model_type": "qwen2_mtp_sensevoice", "num_nextn_predict_layers": 0, "torch_dtype": "bfloat16"}
    config |= {"architectures": ["Qwen2MTPSenseVoiceForCausalLM"], "eos_token_id": 151645}
    (folder / "config.json").write_text(json.dumps(config))
    write_cmvn(folder / "am.mvn")
    return folder


@pytest.fixture(scope="module")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "model"
    assert convert("vita-audio-plus", published, target).layout == "vita_audio_plus_vanilla"
    return target


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found = {file: load_file(folder / file) for file in set(where.values())}
    assert sum(map(len, found.values())) == len(where)
    return {name: found[file][name] for name, file in where.items()}


def test_it_hears_as_the_published_order_of_operations_does(published: Path, converted: Path) -> None:
    """modeling_qwen2.py, Qwen2Model.forward: projector(encoder(audio)) takes the place of the context tokens."""
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    assert (model.config.audio_token_id, model.config.audio_projector) == (151676, "vita")
    source = {name: value.float() for name, value in tensors_in(published).items()}
    heard, part = torch.randn(5, SIZE), "model.audio_projection."
    norm = [source[f"{part}pre_proj_layernorm.{name}"] for name in ("weight", "bias")]
    x = torch.nn.functional.layer_norm(heard, (SIZE,), norm[0], norm[1])
    x = torch.nn.functional.gelu(x @ source[f"{part}mlp.0.weight"].T) @ source[f"{part}mlp.2.weight"].T
    ids = [11, 151674, *[151676] * 5, 151675, 12]
    embedded = source["model.embed_tokens.weight"][ids]
    embedded[2:7] = x
    with torch.no_grad():
        found = model(torch.tensor([ids]), audio_features=heard).logits
        expected = model(inputs_embeds=embedded[None]).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_its_encoder_loads_from_the_folder_beside_it(converted: Path) -> None:
    encoder = load_encoder({"type": "sensevoice", "path": converted / ears.FOLDER})
    assert encoder.dtype == torch.bfloat16 and encoder.frames(160000) == 171


def test_published_again_it_is_bit_for_bit_what_it_was(published: Path, converted: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    AutoModelForCausalLM.from_pretrained(converted, dtype=torch.bfloat16).save_pretrained(trained)
    ears.publish(trained, converted / ears.FOLDER)
    before, after = tensors_in(published), tensors_in(trained)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype and torch.equal(value, after[name]), name
    assert json.loads((trained / "config.json").read_text()) == json.loads((published / "config.json").read_text())


def test_a_golden_prompt_of_ten_seconds(converted: Path) -> None:
    """audio_processor.py, add_audio_input_contiguous; inference_sts.py, luke_system_message and "\\n<|audio|>"."""
    import numpy as np

    from wavalign_ext.data.prepare.dialogue import Sample
    from wavalign_ext.data.prepare.messages import Clip, Turn
    from wavalign_ext.data.prepare.rows import RowMaker
    from wavalign_ext.data.prepare.setup import Setup
    from wavalign_ext.speech.chat import prompt_ids
    from wavalign_ext.speech.layout import load_layout

    tokenizer = AutoTokenizer.from_pretrained(converted)
    encoder = load_encoder({"type": "sensevoice", "path": converted / ears.FOLDER})
    heard = Clip("audios[0]", "q.wav", "heard")
    sample = Sample((Turn("user", (heard,)),), "ok", (Clip("target_audio", "a.wav", "spoken"),), None, "s2s")
    maker = RowMaker(Setup(load_layout("vita_audio_plus_vanilla").resolve(tokenizer), tokenizer, {}))
    codes = {"audios[0]": np.zeros(encoder.frames(160000), int), "target_audio": np.array([1, 2, 3])}
    luke = "Your Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner."
    start, end = 151644, 151645

    def text(words: str) -> list[int]:
        return tokenizer.encode(words, add_special_tokens=False)

    wanted = [start, *text(f"system\n{luke}"), end, *text("\n"), start, *text("user\n\n")]
    wanted += [151674, *[151676] * 171, 151675, end, *text("\n"), start, *text("assistant\n")]
    assert prompt_ids(tokenizer, maker(sample, codes).prompt) == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_nextn_predict_layers": 1}, "layers for multi-token prediction: give VITA-Audio-Plus-Vanilla"),
        ({"model_type": "qwen2"}, "type 'qwen2', not 'qwen2_mtp_sensevoice'"),
    ],
)
def test_another_model_is_refused(published: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = json.loads((published / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConvertError, match=message):
        convert("vita-audio-plus", tmp_path, tmp_path / "new")


def test_publishing_needs_the_encoder(tmp_path: Path) -> None:
    with pytest.raises(
        ConvertError, match=r"has no published_config.json or config.json of a model that hears: give the folder"
    ):
        ears.publish(tmp_path, tmp_path)
