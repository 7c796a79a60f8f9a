"""Which share of learning from a row the language-model head takes, with the model's own head and with ours.

    VERL_PLATFORM=cpu python benchmarks/head_share.py [--rounds 5] [--geometry pocket|large]

The batch, model and passes of ``bench_update.py``, under torch's profiler. The head of a model is every operation that
has an operand as wide as the vocabulary: its products, log-softmax, entropy, and their gradients. Ours is the call of
the fused head, which makes its gradients in the same pass. Prints medians and appends them to results/head_share.csv.
"""

import argparse
import csv
import os
import statistics
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from bench_update import GEOMETRIES, OURS, OWN, Learner, large_model, make_worker

RESULTS = Path(__file__).with_name("results") / "head_share.csv"
CALL = "fused head"


def head_ms(profile: Any, vocabulary: int) -> float:
    """Milliseconds of a profile in the head."""
    total = 0.0
    for event in profile.events():
        wide = any(vocabulary in shape for shape in event.input_shapes if shape)
        if event.name == CALL:
            total += event.cpu_time_total
        elif wide and not any(parent.name == CALL for parent in _parents(event)):
            total += event.self_cpu_time_total
    return total / 1000


def _parents(event: Any) -> Any:
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event


def measure(learner: Learner, side: str, vocabulary: int) -> tuple[float, float]:
    """(milliseconds of all passes over a batch, those in the head), both under the profiler."""
    from torch.profiler import ProfilerActivity, profile, record_function

    head = learner.fused
    called = type(head).__call__

    def named(self: Any, hidden: Any) -> Any:
        with record_function(CALL):
            return called(self, hidden)

    learner.worker.engine.fused = head if side == OURS else None
    passes = [partial(learner.infer, learner.rollouts, side, False)]
    if side == OWN:
        passes.append(partial(learner.infer, learner.rollouts, side, True))
    passes.append(partial(learner.update, learner.mixed if side == OURS else learner.rollouts, side))
    if side == OURS:
        type(head).__call__ = named
    try:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as made:
            start = time.perf_counter()
            for run in passes:
                run()
            wall = 1000 * (time.perf_counter() - start)
    finally:
        type(head).__call__ = called
    return wall, head_ms(made, vocabulary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each side, after one warm-up")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="pocket", help="sizes of model and batch")
    arguments = parser.parse_args()
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29656")

    import torch
    import verl  # noqa: F401  (loads the plugin)

    from wavalign_ext.pocket.build import build

    torch.set_num_threads(1)  # a profile's times then add up to the wall's
    prompts, tokens = GEOMETRIES[arguments.geometry]
    with tempfile.TemporaryDirectory() as folder:
        own = partial(large_model, Path(folder)) if arguments.geometry == "large" else lambda: str(build() / "model")
        learner = Learner(*make_worker(own(), tokens), prompts)
    vocabulary = learner.worker.engine.module.config.vocab_size
    measured: dict[str, list[tuple[float, float]]] = {OWN: [], OURS: []}
    for number in range(arguments.rounds + 1):
        for side, rounds in measured.items():
            found = measure(learner, side, vocabulary)
            rounds += [found] if number else []
    new = not RESULTS.exists()
    with open(RESULTS, "a", newline="") as file:
        table = csv.writer(file)
        if new:
            table.writerow(("date", "geometry", "side", "rounds", "all_ms", "head_ms", "share"))
        for side, rounds in measured.items():
            wall, head = (statistics.median(column) for column in zip(*rounds, strict=True))
            share = statistics.median(b / a for a, b in rounds)
            print(f"{side:<30} head {head:7.0f} of {wall:7.0f} ms: {share:.2f}")
            row = (f"{wall:.1f}", f"{head:.1f}", f"{share:.3f}")
            table.writerow((date.today(), arguments.geometry, side, len(rounds), *row))


if __name__ == "__main__":
    main()
