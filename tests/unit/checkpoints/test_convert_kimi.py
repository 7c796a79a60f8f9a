"""Kimi-Audio: converted, what it was before, logit for logit; exported, bit for bit what was published."""

import json
import shutil
from pathlib import Path
from typing import Any

import published_kimi as kimi
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from wavalign_ext import parallel
from wavalign_ext.checkpoints import kimi_audio
from wavalign_ext.checkpoints.convert import convert
from wavalign_ext.checkpoints.plan import ConvertError
from wavalign_ext.parallel.pairs import heard_places
from wavalign_ext.speech.layout import load_layout


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kimi.build(tmp_path_factory.mktemp("kimi") / "published", torch.bfloat16)


@pytest.fixture(scope="module")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "model"
    assert convert("kimi-audio", published, target).layout == "kimi_audio"
    return target


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found = {file: load_file(folder / file) for file in set(where.values())}
    return {name: found[file][name] for name, file in where.items()}


def frames() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Audio and text ids with their published numbers, and features: a question, and the beginning of its answer."""
    torch.manual_seed(1)
    s = kimi.SPECIAL
    blank, codes = s["<|im_kimia_text_blank|>"], (torch.randint(kimi.CODES, (9,)) + kimi.OFFSET).tolist()
    audio = [s["<|im_kimia_user_msg_start|>"], blank, blank, s["<|im_media_begin|>"], *codes, s["<|im_media_end|>"]]
    audio += [s["<|im_kimia_speech_ctd_id|>"], s["<|im_msg_end|>"], s["<|im_kimia_assistant_msg_start|>"]]
    text = [blank, 65, 66, *[blank] * (len(audio) - 3)]
    audio += [*[blank] * 6, *codes[:4], s["<|im_msg_end|>"]]
    text += [70, 71, s["<|im_kimia_text_eos|>"], *[blank] * 8]
    return torch.tensor(audio), torch.tensor(text), torch.randn(9, 5120)


def test_logits_are_those_of_the_published_order_of_operations(published: Path, converted: Path) -> None:
    parallel.register()
    model: Any = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    audio, text, heard = frames()
    weights = {name: value.float() for name, value in tensors_in(published).items()}
    spoken, written = kimi.forward(weights, kimi.CONFIG, audio, text, heard)
    new = kimi_audio.audio_ids(kimi.OFFSET)
    ours = {kimi.SPECIAL[old]: new[name] for name, old in kimi_audio.CONTROL.items()}
    joint = torch.tensor([ours.get(int(i), int(i)) for i in audio])
    with torch.no_grad():
        out = model(text[None], joint[None], audio_features=heard).logits
    assert (out[0][0] - written[:, : kimi.OFFSET]).abs().max() < 2e-5
    ends = [kimi.SPECIAL["<|im_msg_end|>"], kimi.SPECIAL["<|im_media_end|>"]]
    expected = torch.cat([spoken[:, kimi.OFFSET :], spoken[:, ends]], -1)
    assert (out[1][0] - expected).abs().max() < 2e-5
    assert expected.std() > 0.5  # the comparison would see another row
    with torch.no_grad():  # and other ears
        other = model(text[None], joint[None], audio_features=heard.flip(0)).logits
    assert (other[1][0] - expected).abs().max() > 0.1
    with pytest.raises(ValueError, match="9 codes of the user and 8 vectors"):
        model(text[None], joint[None], audio_features=heard[:8])


def test_only_the_user_s_codes_are_heard_in_packed_rows_too(converted: Path) -> None:
    parallel.register()
    from transformers import AutoConfig

    config, new = AutoConfig.from_pretrained(converted), kimi_audio.audio_ids(kimi.OFFSET)
    heard = [new["<|audio_user_msg_start|>"], new["<|audio_media_begin|>"], 152070, 152071, new["<|audio_media_end|>"]]
    row = [*heard, new["<|audio_assistant_msg_start|>"], new["<|audio_blank|>"], 152072, 152073]
    where = heard_places(config, torch.tensor([row + row, row + row]))
    once = [i in (2, 3) for i in range(len(row))]
    assert where.tolist() == [once + once] * 2


@pytest.mark.parametrize("whole", [True, False], ids=["as converted", "in float32"])
def test_exported_it_is_bit_for_bit_what_was_published(
    published: Path, converted: Path, tmp_path: Path, whole: bool
) -> None:
    trained = tmp_path / "trained"
    if whole:
        shutil.copytree(converted, trained, ignore=shutil.ignore_patterns("published"))
    else:  # transformers' own writing, in another split of files
        parallel.register()
        AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).save_pretrained(trained)
        shutil.copy(converted / "tokenizer.json", trained)
    kimi_audio.publish(trained, converted)
    single = trained / "model.safetensors"
    found, source = load_file(single) if single.is_file() else tensors_in(trained), tensors_in(published)
    assert found.keys() == source.keys()
    wrong = [n for n in source if not torch.equal(found[n], source[n] if whole else source[n].float())]
    assert wrong == []
    for name in ("config.json", "tiktoken.model", "tokenizer_config.json"):
        assert (trained / name).read_bytes() == (published / name).read_bytes()
    assert not (trained / "tokenizer.json").exists()


def test_a_trained_end_token_goes_back_to_its_row(converted: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    trained = tmp_path / "trained"
    shutil.copytree(converted, trained, ignore=shutil.ignore_patterns("published"))
    where = json.loads((trained / "model.safetensors.index.json").read_text())["weight_map"]
    file = trained / where["audio_head.weight"]
    tensors = load_file(file)
    tensors["audio_head.weight"][kimi.CODES] = 3.0
    save_file(tensors, file, metadata={"format": "pt"})
    kimi_audio.publish(trained, converted)
    found = tensors_in(trained)["mimo_output.weight"]
    assert (found[kimi.SPECIAL["<|im_msg_end|>"]] == 3).all() and not (found[151644] == 3).all()


def test_the_tokenizer_has_the_published_ids_and_one_for_each_stream_s_control_tokens(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert {name: tokenizer.convert_tokens_to_ids(name) for name in kimi.SPECIAL} == kimi.SPECIAL
    assert tokenizer.convert_tokens_to_ids("<|audio_0|>") == kimi.OFFSET
    assert tokenizer.convert_tokens_to_ids("<|audio_msg_end|>") == kimi.OFFSET + kimi.CODES
    assert tokenizer.encode("What is 42") == [265, 257, 32, 52, 50]  # digits one by one, and merges by rank
    layout = load_layout("kimi_audio").resolve(tokenizer, kimi.OFFSET + kimi.CODES + 8)
    assert layout.eos_ids == (168448, 168449) and layout.speech_start == kimi.OFFSET


def test_what_is_not_kimi_audio_is_refused(published: Path, tmp_path: Path) -> None:
    for key, value, says in (
        ("architectures", ["Qwen2ForCausalLM"], "not a MoonshotKimiaForCausalLM"),
        ("vocab_size", 160000, "vocab_size=160000 is not Kimi-Audio's 168448"),
        ("use_whisper_feature", False, "use_whisper_feature=False"),
    ):
        source = tmp_path / key
        shutil.copytree(published, source)
        (source / "config.json").write_text(json.dumps(kimi.CONFIG | {key: value}))
        with pytest.raises(ConvertError, match=says):
            convert("kimi-audio", source, tmp_path / "never")
    with pytest.raises(ConvertError, match="no rest.safetensors"):
        kimi_audio.publish(tmp_path, tmp_path)
