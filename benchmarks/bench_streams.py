"""Frames a second of a two-stream model: pairs in stock vLLM, a batched loop of transformers, and one stream in vLLM.

    VERL_PLATFORM=cpu OMP_NUM_THREADS=1 python benchmarks/bench_streams.py [--rounds 3] [--answers 32] [--frames 64]

One random model of the embedded two-stream shape, fp32, in one process; sides alternate, and the medians of the rounds
are printed and appended to benchmarks/results/streams.csv. Every answer has exactly as many frames as asked for: no end
token stops it. The loop is ``wavalign_ext.parallel.generate.draw_answers``, with a KV cache, all answers at once. The
one stream is a Qwen2 with the text branch's layers and the text's vocabulary in vLLM, a token a step.
"""

import argparse
import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1"}
RESULTS = Path(__file__).with_name("results") / "streams.csv"
TEXT, CODES, PROMPT = 600, 2048, 40  # words, codes, frames of a prompt


def models(folder: Path) -> Any:
    """The two-stream model, saved in ``folder/pairs``; a plain one in ``folder/plain``."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from wavalign_ext import parallel
    from wavalign_ext.parallel.config import TwoStreamConfig
    from wavalign_ext.parallel.model import TwoStreamForCausalLM
    from wavalign_ext.parallel.pocket import SHAPE

    parallel.register()
    torch.manual_seed(0)
    first = TEXT + CODES
    streams = dict(text_vocab=TEXT, audio_vocab=CODES + 3, audio_said=CODES + 1, audio_end=[first])
    streams |= dict(audio_blank=first + 1, audio_start=first + 2, delay=5, text_blank=1, text_end=2)
    two = TwoStreamForCausalLM(TwoStreamConfig(**streams, **SHAPE)).eval()  # type: ignore[arg-type]
    two.config.architectures = ["TwoStreamForCausalLM"]
    two.save_pretrained(folder / "pairs")
    shape = {key: value for key, value in SHAPE.items() if key not in ("fork_layer", "audio_layers")}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=TEXT, **shape)).save_pretrained(folder / "plain")  # type: ignore[arg-type]
    return two


def sides(two: Any, folder: Path, answers: int, frames: int) -> dict[str, Callable[[int], int]]:
    """By name, what draws all answers with a seed and says how many frames (one stream: tokens) there are."""
    from vllm import LLM, SamplingParams

    from wavalign_ext.parallel.generate import draw_answers
    from wavalign_ext.parallel.pairs import Pairs

    common: Any = dict(dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=answers)
    common |= dict(disable_log_stats=True, enable_prefix_caching=False, skip_tokenizer_init=True)
    pairs, c = Pairs(two.config), two.config
    flat = [[5 + row % 90, c.audio_blank] * (PROMPT - 1) + [c.text_blank, c.audio_start] for row in range(answers)]
    engine = LLM(str(folder / "pairs"), logits_processors=["wavalign_ext.parallel.sampler:AudioSettings"], **common)
    plain = LLM(str(folder / "plain"), **common)

    def in_vllm(llm: Any, ids: list[list[int]], seed: int) -> int:
        given: Any = dict(temperature=1.0, max_tokens=frames, logprobs=1, ignore_eos=True, detokenize=False)
        sampling = [SamplingParams(seed=1000 * seed + row, **given) for row in range(answers)]
        asked: Any = [{"prompt_token_ids": prompt} for prompt in ids]
        return sum(len(out.outputs[0].token_ids) for out in llm.generate(asked, sampling, use_tqdm=False))

    def loop(seed: int) -> int:
        ends, two.config.audio_end = two.config.audio_end, [-1]  # or short answers would wait for long ones
        try:
            return sum(len(ids) // 2 for ids in draw_answers(two, flat, most_frames=frames, seed=seed))
        finally:
            two.config.audio_end = ends

    return {
        "pairs in vLLM": lambda seed: in_vllm(engine, [pairs.from_flat(ids) for ids in flat], seed),
        "transformers, batched loop": loop,
        "one stream in vLLM": lambda seed: in_vllm(plain, [ids[0::2] for ids in flat], seed),
    }


def main() -> None:
    """Time all sides, print a table and append it to the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--frames", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        two = models(Path(name))
        asked = sides(two, Path(name), given.answers, given.frames)
        rates: dict[str, list[float]] = {side: [] for side in asked}
        for number in range(given.rounds + 1):  # the first one warms up
            for side, draw in asked.items():
                began = time.perf_counter()
                frames = draw(number)
                rate = frames / (time.perf_counter() - began)
                assert frames == given.answers * given.frames, (side, frames)
                if number:
                    rates[side].append(rate)
    RESULTS.parent.mkdir(exist_ok=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        table = csv.writer(file)
        if new:
            table.writerow(["date", "side", "answers", "frames", "rounds", "frames_per_s"])
        for side, found in rates.items():
            rate = round(statistics.median(found), 1)
            table.writerow([date.today().isoformat(), side, given.answers, given.frames, given.rounds, rate])
            print(f"{side:28} {rate:8.1f} frames/s")


if __name__ == "__main__":
    main()
