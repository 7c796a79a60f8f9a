"""The two-stream model for vLLM, of vLLM's own Qwen2 layers; ids are pairs (:mod:`wavalign_ext.parallel.pairs`)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer
from vllm.model_executor.models.utils import maybe_prefix

from wavalign_ext.parallel.pairs import Pairs, embedding_rows

# Parts of a merged matrix by the name in a checkpoint.
MERGED = (
    ("qkv_proj", "q_proj", "q"),
    ("qkv_proj", "k_proj", "k"),
    ("qkv_proj", "v_proj", "v"),
    ("gate_up_proj", "gate_proj", 0),
    ("gate_up_proj", "up_proj", 1),
)


@support_torch_compile
class TwoStreamModel(nn.Module):
    """Hidden states (N, 2H + 2): both branches', and what the pair forces on the next one."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        self.config = config
        self.pairs = Pairs(config)
        self.embed_tokens = VocabParallelEmbedding(config.embedding_rows, config.hidden_size)

        def layer(number: int) -> Qwen2DecoderLayer:  # the KV cache's keys number the audio branch behind the text's
            return Qwen2DecoderLayer(
                config, vllm_config.cache_config, vllm_config.quant_config, f"{prefix}.layers.{number}"
            )

        shared = config.num_hidden_layers
        self.layers = nn.ModuleList(layer(number) for number in range(shared))
        self.audio_layers = nn.ModuleList(layer(shared + number) for number in range(config.audio_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.audio_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def embed_streams(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) pairs → (N, H) of each stream, to be added up."""
        text, audio = self.pairs.true_ids(*self.pairs.decode(input_ids))
        return self.embed_tokens(text), self.embed_tokens(embedding_rows(self.config, audio))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        hidden, residual = inputs_embeds, None
        if hidden is None:
            text, spoken = self.embed_streams(input_ids)
            hidden = text + spoken
        audio, audio_residual = hidden, residual
        for number, layer in enumerate(self.layers):
            hidden, residual = layer(positions, hidden, residual)
            if number == self.config.fork_layer:
                audio, audio_residual = hidden.clone(), residual.clone()
        hidden, _ = self.norm(hidden, residual)
        for layer in self.audio_layers:
            audio, audio_residual = layer(positions, audio, audio_residual)
        audio, _ = self.audio_norm(audio, audio_residual)
        forced = torch.stack(self.pairs.forced(input_ids), -1)
        return torch.cat([hidden, audio, forced.to(hidden.dtype)], -1)


class TwoStreamForCausalLM(nn.Module):
    """What vLLM runs. Logits are the text's, with the audio's as their attribute ``audio``.

    The one patch of vLLM's sampler (``integration/patches.py``) draws from both.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = self.config = vllm_config.model_config.hf_config
        self.model = TwoStreamModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.pairs = self.model.pairs
        self.lm_head = ParallelLMHead(config.text_vocab, config.hidden_size)
        self.audio_head = ParallelLMHead(config.audio_said, config.hidden_size)
        self.text_logits, self.audio_logits = LogitsProcessor(config.text_vocab), LogitsProcessor(config.audio_said)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """(N,) pairs → (N, H)."""
        text, audio = self.model.embed_streams(input_ids)
        return text + audio

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Any = None,
        **_: Any,
    ) -> Tensor:
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Any:
        """(N, T + 1) logits of text, ``audio`` (N, A + D) beside them; a forced row has its alias and nothing else."""
        width = self.config.hidden_size
        text_hidden, audio_hidden, forced = hidden_states.split([width, width, 2], -1)
        over, delay = forced.long().unbind(-1)
        text = self.text_logits(self.lm_head, text_hidden).float()
        said = self.audio_logits(self.audio_head, audio_hidden).float()
        never = said.new_full((len(said), self.config.audio_vocab - said.shape[1]), float("-inf"))
        logits: Any = _with_aliases(text, 1, over)
        logits.audio = _with_aliases(torch.cat([said, never], -1), self.pairs.delay, delay)
        logits.pairs = self.pairs
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Weights by the names of the transformers model; those loaded."""
        parameters, loaded = dict(self.named_parameters()), set()
        for name, weight in weights:
            for merged, part, shard in MERGED:
                if part in name:
                    name = name.replace(part, merged)
                    parameter: Any = parameters[name]
                    parameter.weight_loader(parameter, weight, shard)
                    break
            else:
                getattr(parameters[name], "weight_loader", default_weight_loader)(parameters[name], weight)
            loaded.add(name)
        return loaded


def _with_aliases(logits: Tensor, aliases: int, forced: Tensor) -> Tensor:
    """(N, V) with −∞ columns for the aliases behind; a row with ``forced`` (N,) = k > 0 has 0 on alias k, else −∞."""
    rows, size = logits.shape
    wide = torch.cat([logits, logits.new_full((rows, aliases), float("-inf"))], -1)
    columns = torch.arange(size + aliases, device=logits.device)
    only = torch.where(columns == (size - 1 + forced)[:, None], 0.0, float("-inf"))
    return torch.where(forced[:, None] > 0, only, wide)
