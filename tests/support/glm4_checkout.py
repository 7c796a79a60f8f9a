"""A folder as codec ``glm4_voice`` wants it, small: code of our own in the shape of the published one, and weights.

What the shape is taken from, in github.com/THUDM/GLM-4-Voice: ``speech_tokenizer/modeling_whisper.py`` (class names,
strides, ``_init_weights`` through ``.data``, persistent ``ema_count``), ``speech_tokenizer/utils.py`` (names under
``model.encoder.``, what of a whole Whisper is left out), ``flow_inference.py`` (AudioDecoder's files and attributes;
its models stay in training mode).
"""

import sys
from pathlib import Path
from typing import Any

import torch

CONFIGURATION = """
from transformers import WhisperConfig

class WhisperVQConfig(WhisperConfig):
    def __init__(self, pooling_kernel_size=None, quantize_vocab_size=None, quantize_position=16,
                 quantize_encoder_only=False, **kwargs):
        self.pooling_kernel_size, self.quantize_vocab_size = pooling_kernel_size, quantize_vocab_size
        self.quantize_position, self.quantize_encoder_only = quantize_position, quantize_encoder_only
        super().__init__(**kwargs)
"""
MODELING = """
from types import SimpleNamespace

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .configuration_whisper import WhisperVQConfig


class WhisperVQEncoder(PreTrainedModel):
    config_class, base_model_prefix = WhisperVQConfig, "model"

    def __init__(self, config):
        super().__init__(config)
        width, layers = config.d_model, config.quantize_position
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        if not config.quantize_encoder_only:
            layers, self.layer_norm = config.encoder_layers, nn.LayerNorm(width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self.register_buffer("ema_count", torch.ones(config.quantize_vocab_size))
        self.register_buffer("ramp", torch.arange(width) / width, persistent=False)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            module.weight.data.normal_(std=self.config.init_std)
            module.bias.data.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.data.normal_(std=self.config.init_std)

    def forward(self, input_features, attention_mask):
        hidden = self.conv2(self.conv1(input_features))
        hidden = torch.nn.functional.avg_pool1d(hidden, self.config.pooling_kernel_size).transpose(1, 2) + self.ramp
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return SimpleNamespace(quantized_token_ids=torch.cdist(hidden, self.codebook.weight[None]).argmin(-1))
"""
DECODER = """
import random

import torch


class AudioDecoder:
    def __init__(self, config_path, flow_ckpt_path, hift_ckpt_path, device="cuda"):
        random.seed(1986)
        torch.manual_seed(1986)  # as config.yaml does
        self.scratch_configs = {"llm": torch.nn.Linear(9, 9)}
        self.device, self.flow, self.hift = device, torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.flow.load_state_dict(torch.load(flow_ckpt_path, map_location=device))
        self.hift.load_state_dict(torch.load(hift_ckpt_path, map_location=device))

    def offline_inference(self, token):
        assert not self.flow.training and not self.hift.training
        return 0.01 * torch.randn(1, token.shape[1] * 1764)
"""


def build(root: Path, *, whole: bool = False) -> Path:
    """Write it; ``whole``: the encoder in a file of the whole Whisper, with a norm and a layer too many."""
    code, tokenizer, decoder = root / "GLM-4-Voice", root / "glm-4-voice-tokenizer", root / "glm-4-voice-decoder"
    for folder in ("speech_tokenizer", "cosyvoice", "third_party/Matcha-TTS/matcha"):
        (code / folder).mkdir(parents=True)
    (code / "speech_tokenizer" / "__init__.py").write_text("")
    (code / "speech_tokenizer" / "configuration_whisper.py").write_text(CONFIGURATION)
    (code / "speech_tokenizer" / "modeling_whisper.py").write_text(MODELING)
    (code / "flow_inference.py").write_text(DECODER)
    decoder.mkdir()
    (decoder / "config.yaml").write_text("seed: !apply:random.seed [1986]\n")
    for name in ("flow.pt", "hift.pt"):
        torch.save(torch.nn.Linear(4, 4).state_dict(), decoder / name)
    _write_encoder(root, tokenizer, whole)
    return root


def encoder_class(root: Path) -> Any:
    """The checkout's WhisperVQEncoder."""
    from importlib import import_module

    if str(root / "GLM-4-Voice") not in sys.path:
        sys.path.append(str(root / "GLM-4-Voice"))
    return import_module("speech_tokenizer.modeling_whisper").WhisperVQEncoder


def _write_encoder(root: Path, folder: Path, whole: bool) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import WhisperFeatureExtractor

    kind = encoder_class(root)
    sizes = dict(d_model=8, num_mel_bins=128, encoder_layers=3, quantize_vocab_size=64, encoder_attention_heads=2)
    config = kind.config_class(**sizes, pooling_kernel_size=4, quantize_position=2, quantize_encoder_only=not whole)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = kind(config)
        for tensor in model.state_dict().values():
            tensor.normal_()  # nothing like what any constructor gives
    model.save_pretrained(folder)
    if whole:
        file = folder / "model.safetensors"
        save_file({f"model.encoder.{name}": tensor for name, tensor in load_file(file).items()}, file)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
