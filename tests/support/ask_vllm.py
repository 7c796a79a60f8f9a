"""What vLLM's logits are after some prompts: ``python ask_vllm.py FOLDER IDS_JSON OUT``, as a tensor (prompts, V).

``vllm_logits`` runs this file in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def vllm_logits(folder: Path, prompts: list[list[int]], out: Path):  # -> torch.Tensor
    """Logits of the token after each prompt, in fp32, all of the vocabulary."""
    import torch

    environment = dict(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1")
    command = [sys.executable, __file__, str(folder), json.dumps(prompts), str(out)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-6000:]
    return torch.load(out)


def main() -> None:
    import torch
    from vllm import LLM, SamplingParams

    folder, prompts, out = sys.argv[1:]
    settings = dict(dtype="float32", enforce_eager=True, max_model_len=64, disable_log_stats=True, max_logprobs=-1)
    llm = LLM(folder, **settings, logprobs_mode="raw_logits")
    sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=-1)
    answers = llm.generate([{"prompt_token_ids": ids} for ids in json.loads(prompts)], sampling, use_tqdm=False)
    found = [answer.outputs[0].logprobs[0] for answer in answers]
    torch.save(torch.tensor([[row[token].logprob for token in sorted(row)] for row in found]), out)


if __name__ == "__main__":
    main()
