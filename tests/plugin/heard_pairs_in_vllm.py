"""A converted Kimi-Audio in stock vLLM beside its published order of operations: ``heard_pairs_in_vllm.py FOLDER OUT``.

FOLDER is a small published one. Writes the largest difference of a drawn id's log-prob, by engine, and what was cached.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
MOST = 64
ENGINES: dict[str, dict[str, Any]] = {
    "whole": {"max_num_batched_tokens": 1024, "enable_prefix_caching": False},
    "cut": {"max_num_batched_tokens": 96, "enable_chunked_prefill": True, "enable_prefix_caching": False},
    "prefix": {"max_num_batched_tokens": 1024, "enable_prefix_caching": True, "block_size": 32},
}
TEMPERATURE = 0.02  # of random logits over 152064 words: else no end is ever drawn


def convert(source: Path) -> Path:
    from wavalign_ext.checkpoints.convert import convert

    target = source.with_name("converted")
    convert("kimi-audio", source, target)
    config = json.loads((target / "config.json").read_text()) | {"audio_most": MOST}
    (target / "config.json").write_text(json.dumps(config))
    return target


def prompts(c: Any) -> list[tuple[Any, Any, Any]]:
    """(text, audio, vectors), the second half with the codes of the first, and other vectors."""
    import torch

    found = []
    for row in range(8):
        torch.manual_seed(row % 4)
        codes = (torch.randint(c.codes, (40 + 7 * (row % 4),)) + c.text_vocab).tolist()
        words, user = [300 + row % 4, 301], c.audio_start + 1
        audio = [
            user,
            c.audio_blank,
            c.audio_blank,
            c.media_begin,
            *codes,
            c.audio_end[1],
            c.audio_end[0],
            c.audio_start,
        ]
        text = [c.text_blank, *words, *[c.text_blank] * (len(codes) + 4)]
        torch.manual_seed(100 + row)
        found.append((torch.tensor(text), torch.tensor(audio), torch.randn(len(codes), c.audio_feature_size)))
    return found


def taught(tensors: dict[str, Any], prompt: Any, answer: list[int], c: Any) -> Any:
    """Log-probs (2F,) of a flat answer by the published forward, with the ids as published."""
    import published_kimi as kimi
    import torch

    rows = dict(zip(range(c.vocab_size - len(c.audio_rows), c.vocab_size), c.audio_rows, strict=True))
    text, audio = (torch.cat([part, torch.tensor(answer[n::2])]) for n, part in enumerate(prompt[:2]))
    old = torch.tensor([rows.get(int(i), int(i)) for i in audio])
    spoken, written = kimi.forward(tensors, kimi.CONFIG, old, text, prompt[2])
    ends = c.audio_rows[: len(c.audio_end)]
    said = torch.cat([spoken[:, c.text_vocab :], spoken[:, ends]], -1)
    frames, columns = len(answer) // 2, []
    for logits, first, ids in ((written[:, : c.text_vocab], 0, text), (said, c.text_vocab, audio)):
        logp = (logits[-frames - 1 : -1] / TEMPERATURE).log_softmax(-1)
        at = (ids[-frames:] - first).clamp(max=logp.shape[1] - 1)
        columns.append(logp.gather(1, at[:, None])[:, 0])
    return torch.stack(columns, -1).flatten()


def main() -> None:
    import torch
    from safetensors.torch import load_file
    from vllm import LLM, SamplingParams

    from wavalign_ext import parallel
    from wavalign_ext.parallel.config import HearingTwoStreamConfig
    from wavalign_ext.parallel.pairs import Pairs

    source, out = map(Path, sys.argv[1:])
    parallel.register()
    folder = convert(source)
    tensors: dict[str, Any] = {}
    for file in source.glob("*.safetensors"):
        tensors |= load_file(file)
    c = HearingTwoStreamConfig.from_pretrained(folder)
    pairs, asked = Pairs(c), prompts(c)
    flat = [torch.stack(prompt[:2], -1).flatten().tolist() for prompt in asked]
    inputs: list[Any] = [
        {"prompt_token_ids": pairs.from_flat(ids), "multi_modal_data": {"audio": [prompt[2]]}}
        for ids, prompt in zip(flat, asked, strict=True)
    ]
    given: dict[str, Any] = dict(max_tokens=24, temperature=TEMPERATURE, logprobs=1, stop_token_ids=pairs.stop_ids)
    sampling = [SamplingParams(**given, seed=row, ignore_eos=True, detokenize=False) for row in range(len(asked))]
    found: dict[str, Any] = {}
    common: Any = dict(dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=8, skip_tokenizer_init=True)
    common |= {"disable_log_stats": True, "logprobs_mode": "processed_logprobs"}
    for name, settings in ENGINES.items():
        llm: Any = LLM(str(folder), **common, **settings)
        for again in ("", " again") if name == "prefix" else ("",):
            worst, answers, cached = 0.0, [], 0
            for prompt, output in zip(asked, llm.generate(inputs, sampling, use_tqdm=False), strict=True):
                said = output.outputs[0]
                ids, drawn = pairs.to_flat(said.token_ids)
                logp = torch.tensor([one.logprob for column in said.logprobs for one in column.values()])
                mask = torch.tensor(drawn)
                worst = max(worst, float((logp - taught(tensors, prompt, ids, c)).abs()[mask].max()))
                answers.append(ids)
                cached += output.num_cached_tokens or 0
            found[name + again] = {"worst": worst, "answers": answers, "cached": cached}
        if name == "whole":
            try:
                llm.generate([{**inputs[0], "multi_modal_data": {"audio": [asked[0][2][:9]]}}], sampling[0])
            except ValueError as error:
                found["refused"] = str(error)
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
