"""Converted models say what the originals say: small random models of the original architectures, written from the
public facts (parameter names, order of operations), against the folder that ``wavalign convert`` makes of them."""

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ask_vllm import vllm_logits
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from wavalign_ext.checkpoints import convert, glm4_voice

AUDIO = [f"<|audio_{code}|>" for code in range(16384)]
VITA_NAMES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>", *AUDIO]
# Heads of 32 are the smallest that vLLM's CPU attention takes.
HIDDEN, HEADS, KV_HEADS, SIZE, MLP, LAYERS, DRAFTING = 128, 4, 2, 32, 96, 3, 2


# --- the original architectures, small ----------------------------------------------------------------------------


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q (N, heads, size) over k and v (N, KV heads, size); each KV head serves heads in a row."""
    tokens, heads, size = q.shape
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(size)
    scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(tokens, heads * size)


def angles(tokens: int, size: int, theta: float) -> Tensor:
    """(N, 1, size / 2)."""
    frequencies = theta ** -(torch.arange(0, size, 2) / size)
    return torch.outer(torch.arange(tokens).float(), frequencies)[:, None]


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    scale = 0.8 / HIDDEN**0.5
    return {name: torch.randn(shape) * scale + (len(shape) == 1) for name, shape in shapes.items()}


class Qwen2MTP:
    """VITA-Audio's qwen2_mtp: decoder layers of which the last ``DRAFTING`` are not the language model's."""

    def __init__(self, vocabulary: int) -> None:
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
        for n in range(LAYERS + DRAFTING):
            at = f"model.layers.{n}"
            for part, rows in (("q", HEADS * SIZE), ("k", KV_HEADS * SIZE), ("v", KV_HEADS * SIZE)):
                shapes |= {f"{at}.self_attn.{part}_proj.weight": (rows, HIDDEN)}
                shapes |= {f"{at}.self_attn.{part}_proj.bias": (rows,)}
            shapes |= {f"{at}.self_attn.o_proj.weight": (HIDDEN, HEADS * SIZE)}
            shapes |= {f"{at}.mlp.{part}_proj.weight": (MLP, HIDDEN) for part in ("gate", "up")}
            shapes |= {f"{at}.mlp.down_proj.weight": (HIDDEN, MLP)}
            shapes |= {f"{at}.{part}_layernorm.weight": (HIDDEN,) for part in ("input", "post_attention")}
        for n in range(DRAFTING):
            shapes |= {f"mtp_projs.{n}.weight": (HIDDEN, 2 * HIDDEN)}
            shapes |= {f"mtp_{part}_norms.{n}.weight": (HIDDEN,) for part in ("embed", "hidden")}
        shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocabulary, HIDDEN)}
        self.weights = random_weights(shapes)

    def logits(self, ids: Tensor) -> Tensor:
        w, tokens = self.weights, len(ids)
        x, turn = w["model.embed_tokens.weight"][ids], angles(tokens, SIZE, 1e6)
        for n in range(LAYERS):
            at = f"model.layers.{n}."
            h = norm(x, w[at + "input_layernorm.weight"], 1e-6)
            q, k, v = (
                linear(h, w[f"{at}self_attn.{p}_proj.weight"], w[f"{at}self_attn.{p}_proj.bias"]).view(tokens, -1, SIZE)
                for p in "qkv"
            )
            q, k = (self.rotate(part, turn) for part in (q, k))
            x = x + linear(attend(q, k, v), w[at + "self_attn.o_proj.weight"])
            h = norm(x, w[at + "post_attention_layernorm.weight"], 1e-6)
            gate, up = (linear(h, w[f"{at}mlp.{p}_proj.weight"]) for p in ("gate", "up"))
            x = x + linear(silu(gate) * up, w[at + "mlp.down_proj.weight"])
        return linear(norm(x, w["model.norm.weight"], 1e-6), w["lm_head.weight"])

    @staticmethod
    def rotate(x: Tensor, turn: Tensor) -> Tensor:
        """The first half of a head against its second half."""
        a, b = x.chunk(2, -1)
        return torch.cat([a * turn.cos() - b * turn.sin(), b * turn.cos() + a * turn.sin()], -1)


class ChatGLM:
    """GLM-4-Voice's chatglm: q, k, v in one matrix, rotary on interleaved pairs of the first half of each head."""

    def __init__(self, vocabulary: int) -> None:
        shapes: dict[str, tuple[int, ...]] = {"transformer.embedding.word_embeddings.weight": (vocabulary, HIDDEN)}
        rows = (HEADS + 2 * KV_HEADS) * SIZE
        for n in range(LAYERS):
            at = f"transformer.encoder.layers.{n}"
            shapes |= {f"{at}.{part}_layernorm.weight": (HIDDEN,) for part in ("input", "post_attention")}
            shapes |= {f"{at}.self_attention.query_key_value.weight": (rows, HIDDEN)}
            shapes |= {f"{at}.self_attention.query_key_value.bias": (rows,)}
            shapes |= {f"{at}.self_attention.dense.weight": (HIDDEN, HEADS * SIZE)}
            shapes |= {f"{at}.mlp.dense_h_to_4h.weight": (2 * MLP, HIDDEN)}
            shapes |= {f"{at}.mlp.dense_4h_to_h.weight": (HIDDEN, MLP)}
        shapes |= {"transformer.rotary_pos_emb.inv_freq": (SIZE // 4,)}
        shapes |= {"transformer.encoder.final_layernorm.weight": (HIDDEN,)}
        shapes |= {"transformer.output_layer.weight": (vocabulary, HIDDEN)}
        self.weights = random_weights(shapes)

    def logits(self, ids: Tensor) -> Tensor:
        w, tokens, eps = self.weights, len(ids), 1.5625e-07
        x, turn = w["transformer.embedding.word_embeddings.weight"][ids], angles(tokens, SIZE // 2, 1e4 * 2)
        for n in range(LAYERS):
            at = f"transformer.encoder.layers.{n}."
            h = norm(x, w[at + "input_layernorm.weight"], eps)
            qkv = at + "self_attention.query_key_value."
            heads = linear(h, w[qkv + "weight"], w[qkv + "bias"]).view(tokens, -1, SIZE)
            q, k, v = heads.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
            x = x + linear(attend(self.rotate(q, turn), self.rotate(k, turn), v), w[at + "self_attention.dense.weight"])
            h = norm(x, w[at + "post_attention_layernorm.weight"], eps)
            gate, up = linear(h, w[at + "mlp.dense_h_to_4h.weight"]).chunk(2, -1)
            x = x + linear(silu(gate) * up, w[at + "mlp.dense_4h_to_h.weight"])
        final = norm(x, w["transformer.encoder.final_layernorm.weight"], eps)
        return linear(final, w["transformer.output_layer.weight"])

    @staticmethod
    def rotate(x: Tensor, turn: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        pairs = x[..., :half].reshape(*x.shape[:-1], half // 2, 2)
        a, b = pairs.unbind(-1)
        turned = torch.stack([a * turn.cos() - b * turn.sin(), b * turn.cos() + a * turn.sin()], -1)
        return torch.cat([turned.flatten(-2), x[..., half:]], -1)


# --- their folders ------------------------------------------------------------------------------------------------


def save_in_two_files(weights: dict[str, Tensor], folder: Path) -> None:
    names = sorted(weights)
    halves = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in (0, 1)}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, folder / file)
    where = {name: file for file, part in halves.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.fixture(scope="module")
def vita(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Qwen2MTP]:
    folder = tmp_path_factory.mktemp("vita")
    vocabulary = {name: n for n, name in enumerate([*"abcdefgh", *VITA_NAMES])}
    model = Qwen2MTP(len(vocabulary) + 3)  # VITA-Audio's embedding has three rows more than its tokenizer
    config = {
        "architectures": ["Qwen2MTPForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_qwen2.Qwen2MTPConfig"},
        "model_type": "qwen2_mtp",
        "num_nextn_predict_layers": DRAFTING,
        "num_hidden_layers": LAYERS + DRAFTING,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 64,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": len(vocabulary) + 3,
        "bos_token_id": None,
        "eos_token_id": vocabulary["<|im_end|>"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"mtp_inference_mode": [1, 10, 4, 10], "temperature": 0.7, "do_sample": True, "eos_token_id": [10, 8]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    added = [{"id": vocabulary[n], "content": n, "special": True, "normalized": False} for n in VITA_NAMES]
    added = [{**token, "single_word": False, "lstrip": False, "rstrip": False} for token in added]
    bpe = {"type": "BPE", "vocab": vocabulary, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": bpe}))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "auto_map": {"AutoTokenizer": ["tokenization_qwen2.X", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    save_in_two_files(model.weights, folder)
    return folder, model


PIECES = [b"h", b"e", b"l", b"o", b" ", b"he", b"ll", b"hell", b" he", b"hello", "é".encode()[:1], "é".encode()[1:]]
GLM_NAMES = {"<|endoftext|>": 20, "[gMASK]": 21, "<sop>": 22, "<|system|>": 23, "<|user|>": 24, "<|assistant|>": 25}
GLM_NAMES |= {"<|observation|>": 26, "<|begin_of_audio|>": 27, "<|end_of_audio|>": 28}
GLM_TOKENS = GLM_NAMES | {name: 30 + n for n, name in enumerate(AUDIO)}


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ChatGLM]:
    folder = tmp_path_factory.mktemp("glm")
    vocabulary = 30 + len(AUDIO) + 10
    model = ChatGLM(vocabulary)
    config = {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "padded_vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": MLP,
        "kv_channels": SIZE,
        "num_attention_heads": HEADS,
        "multi_query_attention": True,
        "multi_query_group_num": KV_HEADS,
        "num_layers": LAYERS,
        "layernorm_epsilon": 1.5625e-07,
        "rmsnorm": True,
        "add_qkv_bias": True,
        "add_bias_linear": False,
        "original_rope": True,
        "rope_ratio": 2,
        "seq_length": 64,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    added = {str(token_id): {"content": name} for name, token_id in GLM_TOKENS.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    lines = [base64.b64encode(piece) + b" %d" % rank for rank, piece in enumerate(PIECES)]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines))
    save_in_two_files(model.weights, folder)
    return folder, model


@pytest.fixture(scope="module", params=["vita-audio", "glm4-voice"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    source, original = request.getfixturevalue({"vita-audio": "vita", "glm4-voice": "glm"}[request.param])
    target = tmp_path_factory.mktemp(request.param) / "model"
    assert convert.main([request.param, str(source), str(target)]) == 0
    return target, original


# --- what is asked ------------------------------------------------------------------------------------------------


def test_the_logits_are_the_same(converted: tuple[Path, Any]) -> None:
    target, original = converted
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    assert isinstance(model, nn.Module) and model.config.num_hidden_layers == LAYERS
    for seed in range(3):
        ids = torch.randint(0, model.config.vocab_size, (17,), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            found = model(ids[None]).logits[0]
        wanted = original.logits(ids)
        assert wanted.std() > 0.1
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_vllm_says_the_same(converted: tuple[Path, Any], tmp_path: Path) -> None:
    target, original = converted
    prompts = [torch.randint(0, 60, (length,), generator=torch.Generator().manual_seed(length)) for length in (5, 17)]
    found = vllm_logits(target, [ids.tolist() for ids in prompts], tmp_path / "logits.pt")
    wanted = torch.stack([original.logits(ids)[-1] for ids in prompts])
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted[:, : found.shape[1]], rtol=1e-4, atol=1e-4)


def test_nothing_needs_code_of_the_source(converted: tuple[Path, Any]) -> None:
    target, _ = converted
    for path in target.glob("*.json"):
        assert "auto_map" not in path.read_text(), path
    assert not list(target.glob("*.py"))
    stored = json.loads((target / convert.INDEX).read_text())["weight_map"]
    assert not [name for name in stored if "mtp" in name or "layers.3." in name]


def test_vita_keeps_its_tokenizer_and_settings(vita: tuple[Path, Any], tmp_path: Path) -> None:
    source, _ = vita
    plan = convert.convert("vita-audio", source, tmp_path / "model")
    assert plan.layout == "vita_audio_boost"  # by the turns in its generation_config.json
    before = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))
    after = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert after.get_vocab() == before.get_vocab()
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert generation == {"temperature": 0.7, "do_sample": True, "eos_token_id": [10, 8]}


def test_glm_keeps_its_ids(glm: tuple[Path, Any], tmp_path: Path) -> None:
    convert.convert("glm4-voice", glm[0], tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    vocabulary = tokenizer.get_vocab()
    assert {name: vocabulary[name] for name in GLM_TOKENS} == GLM_TOKENS
    encode = {"hello": [9], "hell": [7], "hel": [5, 2], " he": [8], "é": [10, 11]}
    for text, ids in encode.items():
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<|audio_3|><|user|>", add_special_tokens=False) == [33, 24]


GLM_START, GLM_END = "[gMASK]<sop>", "<|assistant|>streaming_transcription\n"


@pytest.mark.parametrize(
    ("roles", "prompt"),
    [
        ("u", f"{GLM_START}<|user|>\nu{GLM_END}"),
        ("su", f"{GLM_START}<|system|>\ns<|user|>\nu{GLM_END}"),
        ("uau", f"{GLM_START}<|user|>\nu{GLM_END}a<|user|>\nu{GLM_END}"),
        ("suauau", f"{GLM_START}<|system|>\ns<|user|>\nu{GLM_END}a<|user|>\nu{GLM_END}a<|user|>\nu{GLM_END}"),
    ],
)
def test_glm_s_dialogues_are_its_web_demo_s(glm: tuple[Path, Any], tmp_path: Path, roles: str, prompt: str) -> None:
    """web_demo.py of THUDM/GLM-4-Voice, inference_fn; [gMASK]<sop> is its tokenizer's."""
    convert.convert("glm4-voice", glm[0], tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages = [{"role": names[letter], "content": letter} for letter in roles]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == prompt


def test_vita_s_chat_template_is_its_inference_code_s(vita: tuple[Path, Any], tmp_path: Path) -> None:
    """evaluation/get_chat_template.py of VITA-MLLM/VITA-Audio: no system message where the dialogue has none."""
    source = edited(vita[0], tmp_path)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    default = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"  # of the published tokenizer_config.json
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": default}))
    (source / "chat_template.jinja").write_text(default)
    convert.convert("vita-audio", source, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


def test_ranked_merges_are_tiktokens(tmp_path: Path, glm: tuple[Path, Any]) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    convert.convert("glm4-voice", glm[0], tmp_path / "model")
    ours = AutoTokenizer.from_pretrained(tmp_path / "model")
    ranks = {piece: rank for rank, piece in enumerate(PIECES)}
    theirs = tiktoken.Encoding("glm", pat_str=glm4_voice.PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in ("hello", " hello", "helloé hell", "ellohello", "he he  hello", "llhell"):
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text), text


def refusal(capsys: pytest.CaptureFixture, *argv: str) -> str:
    assert convert.main(argv) == 1
    line = capsys.readouterr().err
    assert line.startswith("wavalign convert: ") and line.count("\n") == 1
    return line


def edited(source: Path, folder: Path, **changes: Any) -> Path:
    copy = folder / "edited"
    copy.mkdir()
    for path in source.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "'llama', not 'qwen2_mtp'"),
        ({"model_type": "qwen2_mtp_sensevoice"}, "SenseVoice encoder"),
        ({"num_nextn_predict_layers": 9}, "5 layers of which 9 are for MTP"),
        ({"num_hidden_layers": 9}, "lacks .* tensors"),
        ({"intermediate_size": 99}, rf"shape \(99, {HIDDEN}\)"),
        ({"vocab_size": 100}, "beyond the model's vocabulary of 100"),
    ],
)
def test_another_model_is_refused(
    vita: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict, message: str
) -> None:
    source = edited(vita[0], tmp_path, **changes)
    assert re.search(message, refusal(capsys, "vita-audio", str(source), str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]  # a failure leaves nothing behind


def test_incomplete_folders_are_refused(vita: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "cannot be read" in refusal(capsys, "vita-audio", str(tmp_path / "none"), str(tmp_path / "out"))
    source = edited(vita[0], tmp_path)
    assert "is not empty" in refusal(capsys, "vita-audio", str(source), str(source))
    (source / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002" in refusal(capsys, "vita-audio", str(source), str(tmp_path / "out"))
    (source / "tokenizer.json").write_text((source / "tokenizer.json").read_text().replace("audio_16383", "noise"))
    assert "audio_16383" in refusal(capsys, "vita-audio", str(source), str(tmp_path / "out2"))


def test_another_chatglm_is_refused(glm: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = edited(glm[0], tmp_path, rmsnorm=False)
    assert "rmsnorm=False" in refusal(capsys, "glm4-voice", str(source), str(tmp_path / "out"))
    config = json.loads((source / "config.json").read_text()) | {"rmsnorm": True}
    config.pop("kv_channels")
    (source / "config.json").write_text(json.dumps(config))
    assert "has no 'kv_channels'" in refusal(capsys, "glm4-voice", str(source), str(tmp_path / "out"))
