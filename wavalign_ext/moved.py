"""Import paths of earlier versions: each ends in one line that names the new one.

Of a package that moved, Python asks for the package alone, whichever of its modules is imported; its modules that have
another name now are listed below its new one.
"""

import importlib.abc
import sys
from typing import Any

MOVED = {
    "advantage": "method.advantage",
    "agent_loop": "rollout.agent_loop",
    "anchor": "method.anchor",
    "asr": "speech.asr",
    "chat": "speech.chat",
    "checked_weights": "integration.checked_weights",
    "codec": "speech.codecs.base",
    "codecs": "speech.codecs",
    "convert": "checkpoints.convert",
    "cpu_platform": "integration.cpu_platform",
    "data.prepare.raw": "data.prepare.raw_rows",
    "data.prepare.samples": "data.prepare.dialogue",
    "dataset": "data.dataset",
    "devices": "speech.devices",
    "doctor": "checks.doctor",
    "engine": "integration.engine",
    "export": "checkpoints.export",
    "fused_head": "integration.fused_head",
    "glm4_voice": "checkpoints.glm4_voice",
    "group_filter": "trainer.group_filter",
    "hardware": "integration.hardware",
    "held_out": "trainer.validation_nll",
    "hold_schedule": "rollout.schedule_logits_processor",
    "judge_check": "checks.judge_check",
    "layout": "speech.layout",
    "listen": "report.listen",
    "loading": "checkpoints.strict_loading",
    "lora": "integration.lora",
    "loss": "method.loss",
    "merge": "checkpoints.merge",
    "metrics": "trainer.metrics",
    "mixing": "method.mixing",
    "patches": "integration.patches",
    "policy_sums": "method.policy_sums",
    "preflight": "checks.preflight",
    "preflight_data": "checks.preflight_data",
    "preflight_model": "checks.preflight_model",
    "prepare": "data.prepare",
    "resolvers": "integration.resolvers",
    "reward": "rewards.manager",
    "routes": "rewards.routing",
    "run": "integration.run",
    "samples": "trainer.rollout_dump",
    "speech.codecs.streams": "speech.codecs.codebook_stream",
    "surrogates": "method.surrogates",
    "text_normalization": "speech.text_normalization",
    "token_names": "speech.token_names",
    "turns": "speech.turn_grammar",
    "update": "trainer.actor_batch",
    "versions": "integration.versions",
    "vita": "checkpoints.vita_audio",
    "watchdog": "trainer.watchdog",
    "weights": "method.token_weights",
}
PACKAGE = "wavalign_ext."


class _Moved(importlib.abc.MetaPathFinder):
    """Asked last, for names that nothing else finds."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        new = MOVED.get(fullname.removeprefix(PACKAGE)) if fullname.startswith(PACKAGE) else None
        if new is not None:
            raise ModuleNotFoundError(f"{fullname} has moved: import {PACKAGE}{new}", name=fullname)


def install() -> None:
    """Put the finder last on the meta path, once."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
