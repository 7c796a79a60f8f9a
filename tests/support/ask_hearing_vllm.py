"""vLLM's answers of a model that hears: ``python ask_hearing_vllm.py FOLDER OUT``, with OUT.in as torch saved it.

``hearing_answers`` runs this file in a process of its own.
"""

import sys
from pathlib import Path
from typing import Any

import forked


def hearing_answers(folder: Path, prompts: list, out: Path) -> list:
    """Twice the answers to (ids, recordings' vectors): (ids, log-probs, how many prompt tokens were cached)."""
    import torch

    torch.save(prompts, f"{out}.in")
    environment = dict(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1")
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # two processes less to start
    done = forked.run(Path(__file__), str(folder), str(out), **environment)
    assert done.returncode == 0, done.stderr[-6000:]
    return torch.load(out)


def logps(model: Any, ids: list[int], heard: list[Any]) -> Any:
    """Log-probs (N - 1,) of ids (N,) after the first, the placeholder left out of the distribution as vLLM does."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([ids]), audio_features=torch.cat(heard) if heard else None).logits[0, :-1]
    logits[:, model.config.audio_token_id] = -torch.inf
    wanted = torch.tensor(ids[1:])[:, None]
    return logits.log_softmax(-1).gather(-1, wanted)[:, 0]


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
