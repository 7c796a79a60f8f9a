"""What vLLM samples on a CPU with seeds when prompts are whole, cut, or computed anew: ``cut_prompts.py MODEL OUT``.

Writes {"whole": ids of each answer, "cut": ..., "preempted": ..., "preemptions": count of the last}.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # the scheduler is in reach
KINDS = {
    "whole": {"max_num_batched_tokens": 4096},
    "cut": {"max_num_batched_tokens": 64, "max_num_seqs": 32, "enable_chunked_prefill": True},
    # Eight blocks of 128 tokens for six answers that need two each.
    "preempted": {"max_num_batched_tokens": 64, "max_num_seqs": 32, "num_gpu_blocks_override": 8},
}


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler

    model, out = sys.argv[1:]
    found: dict[str, Any] = {"preemptions": 0}
    preempt = Scheduler._preempt_request

    def counted(*args: object, **kwargs: object) -> None:
        found["preemptions"] += 1
        preempt(*args, **kwargs)  # pyright: ignore[reportArgumentType]

    Scheduler._preempt_request = counted
    prompts: Any = [{"prompt_token_ids": [1 + (7 * row + n) % 300 for n in range(100)]} for row in range(6)]
    sampling = [SamplingParams(max_tokens=40, temperature=1.0, seed=row, ignore_eos=True) for row in range(6)]
    common = dict(dtype="float32", enforce_eager=True, max_model_len=256, enable_prefix_caching=False)
    for kind, settings in KINDS.items():
        llm = LLM(model, **common, **settings)
        answers = llm.generate(prompts, sampling, use_tqdm=False)
        found[kind] = [list(answer.outputs[0].token_ids) for answer in answers]
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
