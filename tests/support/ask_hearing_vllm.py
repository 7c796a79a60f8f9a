"""vLLM's answers of a model that hears: ``python ask_hearing_vllm.py FOLDER OUT``, with OUT.in as torch saved it.

``hearing_answers`` runs this file in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path


def hearing_answers(folder: Path, prompts: list, out: Path) -> list:
    """Twice the answers to (ids, recordings' vectors): (ids, log-probs, how many prompt tokens were cached)."""
    import torch

    torch.save(prompts, f"{out}.in")
    environment = dict(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1")
    command = [sys.executable, __file__, str(folder), str(out)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-6000:]
    return torch.load(out)


def main() -> None:
    import torch
    from vllm import LLM, SamplingParams

    folder, out = sys.argv[1:]
    prompts = torch.load(f"{out}.in")
    llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=256, disable_log_stats=True)
    rounds = []
    for number in range(2):  # the second one comes out of the prefix cache
        sampling = [SamplingParams(max_tokens=24, logprobs=0, seed=100 * number + k) for k in range(len(prompts))]
        asked = [
            dict(prompt_token_ids=ids, multi_modal_data={"audio": heard} if heard else {}) for ids, heard in prompts
        ]
        told = []
        for answer, (ids, _) in zip(llm.generate(asked, sampling, use_tqdm=False), prompts, strict=True):
            assert list(answer.prompt_token_ids) == ids
            said = answer.outputs[0]
            logp = [by_id[token].logprob for by_id, token in zip(said.logprobs, said.token_ids, strict=True)]
            told.append((list(said.token_ids), torch.tensor(logp), answer.num_cached_tokens))
        rounds.append(told)
    torch.save(rounds, out)


if __name__ == "__main__":
    main()
