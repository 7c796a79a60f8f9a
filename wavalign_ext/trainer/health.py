"""Whether a step was one to build on: whole, finite, and near to what the run has been like.

Nothing else looks: verl trains on with a loss of NaN or of 6000, exits with 0, and rotates the good checkpoints out.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from wavalign_ext.config import HealthConfig
from wavalign_ext.integration.ending import RunEnded

# What is watched, with the least that its usual size counts as: a gradient that has shrunk to 0.01 may be 1 again, and
# an entropy below a quarter nat per token is low whatever its median.
FLOORS = {
    "actor/loss": 1.0,
    "actor/grad_norm": 1.0,
    "actor/anchor_nll_text": 1.0,
    "actor/anchor_nll_speech": 1.0,
    "actor/entropy_text": 0.25,
    "actor/entropy_speech": 0.25,
}
WINDOW = 50  # healthy steps that make up what is usual


class Diverged(RunEnded):
    """Too many steps in a row that are not healthy."""


class NotWhole(RunEnded):
    """A step without some of its rollouts."""


class Health:
    """Looks at the metrics of each step. ``problem`` is what is wrong with the last one, or None."""

    def __init__(self, settings: HealthConfig, expects_scores: bool = True) -> None:
        self.settings, self.expects_scores = settings, expects_scores
        self.usual: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in FLOORS}
        self.problem: str | None = None
        self.unhealthy = 0  # steps in a row

    def look(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Judge a step. Raises :class:`Diverged` at the last of ``stop_after_steps`` unhealthy ones in a row."""
        self.problem = self._problem(metrics)
        if self.problem is None:
            self.unhealthy = 0
            for name, values in self.usual.items():
                if name in metrics:
                    values.append(abs(float(metrics[name])))
            return
        self.unhealthy += 1
        allowed = self.settings.stop_after_steps
        print(f"wavalign: step {step} is not healthy ({self.unhealthy} of {allowed}): {self.problem}", flush=True)
        if self.unhealthy >= allowed:
            raise Diverged(
                f"{self.problem}: step {step} is the last of {allowed} unhealthy ones in a row "
                "(wavalign.health.stop_after_steps), and none of them was saved"
            )

    def _problem(self, metrics: Mapping[str, Any]) -> str | None:
        wrong = [name for name, value in metrics.items() if name.startswith("actor/") and not _finite(value)]
        if wrong:
            return f"{wrong[0]} is {metrics[wrong[0]]}"
        factor = self.settings.explosion_factor
        for name, floor in FLOORS.items():
            if name not in metrics or not self.usual[name]:
                continue
            value, usual = abs(float(metrics[name])), median(self.usual[name])
            if value > factor * max(usual, floor):
                return (
                    f"{name} is {value:.4g}, where {usual:.4g} is usual (wavalign.health.explosion_factor={factor:g})"
                )
        if self.expects_scores and metrics.get("wavalign/nothing_scored", 0) > 0:
            return "no answer has a reward, so only the anchor is trained"
        return None

    def state_dict(self) -> dict[str, list[float]]:
        """What is usual, for a checkpoint: a resumed run must not take a diverged one for its measure."""
        return {name: list(values) for name, values in self.usual.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take over what was usual; names of another version are left out."""
        for name in self.usual.keys() & state.keys():
            self.usual[name].extend(float(value) for value in state[name])


def _finite(value: Any) -> bool:
    return not isinstance(value, int | float) or math.isfinite(value)


def check_whole(
    step: int, keys: Sequence[str], prompts: Mapping[str, tuple[int, int]], wanted: int, settings: HealthConfig
) -> tuple[float, dict[str, int]]:
    """Compare the rollouts that came with those asked for.

    Args:
        keys: of the rows, ``{uid}_{session}_{index}``, without copies that fill up a batch.
        prompts: uid → (row of the data, rollouts asked for), of all prompts that were sent out for this step.
        wanted: prompts that make a step; more are sent out where ``algorithm.filter_groups`` drops some.

    Returns:
        The share that is missing, and the prompts that no rollout came of: uid → row of the data.

    Raises:
        NotWhole: more is missing than ``health.missing_rollouts``.
    """
    came: dict[str, set[str]] = {}
    for key in keys:
        uid, session, _ = key.rsplit("_", 2)
        came.setdefault(uid, set()).add(session)
    absent = [uid for uid in prompts if uid not in came]
    if len(absent) > (left := max(wanted - len(came), 0)):  # dropped by the filter, most of them
        absent = absent[-left:] if left else []
    lacking = {uid: prompts[uid][1] - len(came.get(uid, ())) for uid in [*came, *absent] if uid in prompts}
    lacking = {uid: count for uid, count in lacking.items() if count > 0}
    vanished = {uid: prompts[uid][0] for uid in absent}
    if not lacking:
        return 0.0, vanished
    count = sum(lacking.values())
    asked = sum(prompts[uid][1] for uid in [*came, *absent] if uid in prompts)
    named = ", ".join(f"{number} of data row {prompts[uid][0]}" for uid, number in list(lacking.items())[:4])
    more = f" and of {len(lacking) - 4} other rows" if len(lacking) > 4 else ""
    told = f"step {step} has {asked - count} of {asked} rollouts; missing are {named}{more}"
    if count > settings.missing_rollouts * asked:
        raise NotWhole(
            f"{told}: why stands above, in the lines of the agent loops and the engine. The step was not trained on; "
            "start again to go on from the last checkpoint, or let a share be missing: wavalign.health.missing_rollouts"
        )
    print(f"wavalign: {told}", flush=True)
    return count / asked, vanished
