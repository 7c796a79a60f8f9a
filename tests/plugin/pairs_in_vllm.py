"""Pairs in stock vLLM beside the same model taught by torch: ``pairs_in_vllm.py WHICH FOLDER OUT``.

Writes, by name, the largest difference of a log-prob of either stream, and what happened on the way (preemptions,
cached tokens, answers that ended). Every answer is held against the grammar.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # the scheduler and the weights are in reach
ENGINES: dict[str, dict[str, Any]] = {
    "whole": {"max_num_batched_tokens": 2048},
    "cut": {"max_num_batched_tokens": 48, "enable_chunked_prefill": True},
    "preempted": {"max_num_batched_tokens": 1024, "num_gpu_blocks_override": 20, "block_size": 32},
    "prefix": {"max_num_batched_tokens": 1024, "enable_prefix_caching": True, "block_size": 32},
}


class Engine:
    """One engine on a two-stream model, and that model for transformers."""

    def __init__(self, folder: str, model: Any, **settings: Any) -> None:
        from vllm import LLM

        from wavalign_ext.parallel.pairs import Pairs

        self.model, self.pairs = model, Pairs(model.config)
        common = dict(dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=16, skip_tokenizer_init=True)
        common |= {"enable_prefix_caching": False, "disable_log_stats": True, "logprobs_mode": "processed_logprobs"}
        processors = ["wavalign_ext.parallel.sampler:AudioSettings"]
        self.llm: Any = LLM(folder, **common | {"logits_processors": processors} | settings)  # type: ignore[arg-type]
        self.cached, self.ended, self.endless = 0, 0, False

    def ask(self, prompts: list[Any], **more: Any) -> list[tuple[list[int], list[float], list[bool]]]:
        """Flat answers, their log-probs, and which ids were drawn; ``more`` are settings, or a function of the row."""
        from two_streams import flat
        from vllm import SamplingParams

        sampling = []
        for row in range(len(prompts)):
            given = {name: value(row) if callable(value) else value for name, value in more.items()}
            given = (
                dict(temperature=1.0, max_tokens=40 + 10 * row, seed=row, stop_token_ids=self.pairs.stop_ids) | given
            )
            sampling.append(SamplingParams(logprobs=1, ignore_eos=True, detokenize=False, **given))
        inputs = [{"prompt_token_ids": self.pairs.from_flat(flat(*prompt))} for prompt in prompts]
        answers = []
        for output in self.llm.generate(inputs, sampling, use_tqdm=False):
            said = output.outputs[0]
            ids, drawn = self.pairs.to_flat(said.token_ids)
            columns = [[one.logprob for one in column.values()] for column in said.logprobs]
            assert all(len(column) == 2 for column in columns)
            answers.append((ids, [logp for column in columns for logp in column], drawn))
            self.cached += output.num_cached_tokens or 0
            self.ended += said.finish_reason == "stop"
        return answers

    def worst(self, prompts: list[Any], answers: list[Any], settings: Any = lambda row: (1.0, 0)) -> float:
        """The largest difference of a drawn id's log-prob; raises where the grammar is broken.

        ``settings``: temperature and top-k of a row.
        """
        import torch
        from two_streams import taught

        largest = 0.0
        for row, (prompt, (ids, logp, drawn)) in enumerate(zip(prompts, answers, strict=True)):
            self.check(ids, drawn)
            mask, found = torch.tensor(drawn), torch.tensor(logp)
            difference = (found - taught(self.model, prompt, ids, *settings(row))).abs()
            largest = max(largest, float(difference[mask].max()))
        return largest

    def check(self, ids: list[int], drawn: list[bool]) -> None:
        c, text, audio = self.model.config, ids[0::2], ids[1::2]
        silent = min(c.delay, len(audio))
        assert audio[:silent] == [c.audio_blank] * silent and not any(drawn[1 : 2 * silent : 2])
        assert all(drawn[2 * silent + 1 :: 2]) and all(i < c.text_vocab + c.audio_said for i in audio[silent:])
        if c.text_end in text:
            at = text.index(c.text_end)
            assert set(text[at + 1 :]) <= {c.text_blank} and not any(drawn[2 * at + 2 :: 2])
        ends = [n for n, i in enumerate(audio) if i in c.audio_end]
        assert self.endless or ends in ([], [len(audio) - 1])

    def update(self) -> None:
        """New weights, in place, as verl brings them."""
        import torch
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        runner = self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        runner.model.load_weights((name, value.detach().clone()) for name, value in self.model.state_dict().items())
        process_weights_after_loading(runner.model, runner.model_config, torch.device("cpu"))
        self.llm.reset_prefix_cache()


def mixed(engine: Engine, prompts: list[Any]) -> float:
    """Greedy rows, temperatures and top-k side by side; log-probs are those of what was drawn from."""
    heat, cut = [0.0, 0.7, 1.0, 1.3], [0, 10, 0, 0]
    answers = engine.ask(prompts, temperature=lambda row: heat[row % 4], top_k=lambda row: cut[row % 4])
    return engine.worst(prompts, answers, lambda row: (heat[row % 4] or 1.0, cut[row % 4]))


def audio_of_its_own(engine: Engine, prompts: list[Any]) -> dict[str, Any]:
    """Greedy text beside audio at a temperature, and the reverse; top-k 1 of audio is greedy audio."""
    import torch

    own = [{"audio_temperature": 0.8}, {"audio_temperature": 0.0}, {"audio_top_k": 1}, {}]
    heat = [0.0, 1.0, 1.0, 0.0]
    answers = engine.ask(
        prompts, temperature=lambda row: heat[row % 4], extra_args=lambda row: dict(own[row % 4]), stop_token_ids=[]
    )
    best, count = {"text": [0] * 4, "audio": [0] * 4}, [0] * 4
    c = engine.model.config
    for row, (prompt, (ids, _, drawn)) in enumerate(zip(prompts, answers, strict=True)):
        whole = [torch.cat([part, torch.tensor(ids[stream::2])]) for stream, part in enumerate(prompt)]
        with torch.no_grad():
            logits = engine.model(whole[0][None], whole[1][None]).logits
        frames = len(ids) // 2
        for stream, (name, first) in enumerate((("text", 0), ("audio", c.text_vocab))):
            top = logits[stream][0, -frames - 1 : -1].argmax(-1) + first
            hit = (top == torch.tensor(ids[stream::2])) | ~torch.tensor(drawn[stream::2])
            best[name][row % 4] += int(hit.sum())
        count[row % 4] += frames
    return {name: [found / all_ for found, all_ in zip(hits, count, strict=True)] for name, hits in best.items()}


def main() -> None:
    from two_streams import make, prompts
    from vllm.v1.core.sched.scheduler import Scheduler

    which, folder, out = sys.argv[1:]
    found: dict[str, Any] = {"preemptions": 0}
    preempt = Scheduler._preempt_request

    def counted(*args: Any, **kwargs: Any) -> None:
        found["preemptions"] += 1
        preempt(*args, **kwargs)

    Scheduler._preempt_request = counted
    shape = json.loads(os.environ.get("SHAPE", "{}"))
    model = make(Path(folder), **shape)
    for kind in which.split(","):
        engine = Engine(folder, make(**shape), **ENGINES[kind])
        asked = prompts(model.config, 16, seed=1, lengths=(70, 200) if kind == "prefix" else (8, 90))
        engine.endless = kind == "preempted"  # so that the cache overflows
        more: dict[str, Any] = {"stop_token_ids": [], "max_tokens": 220} if engine.endless else {}
        answers = engine.ask(asked, **more)
        found[kind] = engine.worst(asked, answers)
        found[f"{kind} answers"] = [ids for ids, *_ in answers]
        if kind == "whole":
            found["mixed"], found["own"] = mixed(engine, asked), audio_of_its_own(engine, asked)
            found["again"] = [ids for ids, *_ in engine.ask(asked)] == found["whole answers"]
        if kind == "prefix":
            found["prefix answers again"] = [ids for ids, *_ in engine.ask(asked)]
            found["cached"] = engine.cached
            other = [(text, audio.clone()) for text, audio in asked]
            for _, audio in other:  # the same text, and other audio in the first frame: no prefix in common
                audio[0] = model.config.vocab_size - 1 - (audio[0] == model.config.vocab_size - 1).long()
            before = engine.cached
            found["other audio"], found["cached of other audio"] = engine.worst(other, engine.ask(other)), 0
            found["cached of other audio"] = engine.cached - before
        engine.update()
        found[f"{kind} updated"] = engine.worst(asked, engine.ask(asked, **more))
        found[f"{kind} ended"] = engine.ended
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
