"""The ``wavalign`` node of a recipe, checked once, before Ray starts.

Importing this module needs neither torch nor verl.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

TOKENS = ("all", "text", "speech")
BOUNDARIES = ("speech", "text", "ignore")
MODALITIES = ("text", "speech")
MIXINGS = ("adaptive", "fixed")


class ConfigError(ValueError):
    """A value that WavAlign cannot run with. The message names the key, the value, what is allowed and the remedy."""


def _check(ok: bool, key: str, value: Any, allowed: str, remedy: str = "") -> None:
    if not ok:
        raise ConfigError(f"wavalign.{key}={value!r} is not allowed: {allowed}." + (f" {remedy}" if remedy else ""))


def _non_negative(key: str, value: Any) -> None:
    _check(isinstance(value, int | float) and math.isfinite(value) and value >= 0, key, value, "a number ≥ 0")


@dataclass(frozen=True)
class PreferenceConfig:
    """Which rollout tokens the policy gradient acts on, and how much (METHOD: w_t)."""

    tokens: str = "text"
    text_weight: float = 1.0
    speech_weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self.tokens in TOKENS, "preference.tokens", self.tokens, f"one of {', '.join(TOKENS)}")
        _non_negative("preference.text_weight", self.text_weight)
        _non_negative("preference.speech_weight", self.speech_weight)


@dataclass(frozen=True)
class AnchorConfig:
    """Which target tokens the supervised anchor acts on, and how much (METHOD: v_t)."""

    tokens: str = "all"
    text_weight: float = 1.0
    speech_weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self.tokens in TOKENS, "anchor.tokens", self.tokens, f"one of {', '.join(TOKENS)}")
        _non_negative("anchor.text_weight", self.text_weight)
        _non_negative("anchor.speech_weight", self.speech_weight)


@dataclass(frozen=True)
class KLConfig:
    """Coefficients of the k3 penalty against the reference policy, one per modality (METHOD: β_text, β_speech)."""

    text: float = 1e-3
    speech: float = 1e-3

    def __post_init__(self) -> None:
        _non_negative("kl.text", self.text)
        _non_negative("kl.speech", self.speech)


@dataclass(frozen=True)
class MixingConfig:
    """How λ, the weight of the preference loss, is found.

    ``adaptive`` reads it from the rewards; ``gate_centre`` (τ), ``gate_slope`` (k) and ``variance_scale`` (v0) follow
    from the reward scale when they are null. ``fixed`` uses ``value``.
    """

    type: str = "adaptive"
    value: float | None = None
    lambda_max: float = 0.8
    smoothing: float = 0.9
    gate_centre: float | None = None
    gate_slope: float | None = None
    variance_scale: float | None = None

    def __post_init__(self) -> None:
        _check(self.type in MIXINGS, "mixing.type", self.type, f"one of {', '.join(MIXINGS)}")
        if self.type == "fixed":
            ok = isinstance(self.value, int | float) and 0 <= self.value <= 1
            _check(ok, "mixing.value", self.value, "a number in [0, 1] when mixing.type=fixed")
        _check(0 <= self.lambda_max <= 1, "mixing.lambda_max", self.lambda_max, "a number in [0, 1]")
        _check(0 <= self.smoothing < 1, "mixing.smoothing", self.smoothing, "a number in [0, 1)")
        for name in ("gate_slope", "variance_scale"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"mixing.{name}", value, "a number > 0, or null to derive it")


@dataclass(frozen=True)
class RewardConfig:
    """The declared scale of the reward, its terms (``name -> {weight, ...}``), and which of them drive which tokens.

    ``routes`` gives ``text`` or ``speech`` tokens terms of their own; without, the total drives them.
    """

    scale: tuple[float, float] = (1.0, 5.0)
    terms: Mapping[str, Any] = field(default_factory=dict)
    routes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        low, high = self.scale
        _check(low < high, "reward.scale", list(self.scale), "[low, high] with low < high")
        for route, names in self.routes.items():
            key = f"reward.routes.{route}"
            _check(route in MODALITIES, key, names, f"one of {', '.join(MODALITIES)}")
            if names is not None:
                counted = [name for name, term in self.terms.items() if term.get("weight", 1) > 0]
                ok = not isinstance(names, str) and len(names) > 0 and all(name in counted for name in names)
                _check(ok, key, names, f"a list of terms with a positive weight ({', '.join(counted)}), or null")

    @property
    def routed(self) -> dict[str, list[str]]:
        """Terms by modality, where a modality has its own."""
        return {route: list(names) for route, names in self.routes.items() if names is not None}

    @property
    def group_metrics(self) -> list[str]:
        """What ``algorithm.filter_groups`` can compare the rollouts of a prompt by: numbers that each of them has."""
        return ["reward", *(f"reward_{route}" for route in self.routed), *(f"score_{term}" for term in self.terms)]


@dataclass(frozen=True)
class WatchdogConfig:
    """Seconds between looks at the workers, without an answer before one counts as lost, and that a step may take."""

    check_s: float = 5.0
    silent_s: float = 60.0
    step_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("check_s", "silent_s", "step_s"):
            value = getattr(self, name)
            ok = (value is None and name == "step_s") or (isinstance(value, int | float) and value > 0)
            _check(ok, f"watchdog.{name}", value, "a number > 0" + (", or null" if name == "step_s" else ""))


@dataclass(frozen=True)
class SamplesConfig:
    """How many rollouts of a logged step are decoded to WAV."""

    count: int = 8

    def __post_init__(self) -> None:
        _check(isinstance(self.count, int) and self.count >= 0, "samples.count", self.count, "an integer ≥ 0")


@dataclass(frozen=True)
class WavAlignConfig:
    """Everything under ``wavalign`` in a recipe. ``layout``, ``codec`` and ``heard_codec`` are resolved elsewhere."""

    layout: Any
    codec: Mapping[str, Any]
    heard_codec: Mapping[str, Any] | None = None
    audio_root: str | None = None
    boundaries: str = "speech"
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    hold_schedule: bool = False
    seeded_sampling: bool = True
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)

    def __post_init__(self) -> None:
        _check(self.boundaries in BOUNDARIES, "boundaries", self.boundaries, f"one of {', '.join(BOUNDARIES)}")
        for name in ("hold_schedule", "seeded_sampling"):
            _check(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")

    @property
    def uses_anchor(self) -> bool:
        """False only where the anchor's weight, 1 − λ, is 0 at every step."""
        return not (self.mixing.type == "fixed" and self.mixing.value == 1)

    @classmethod
    def from_mapping(cls, node: Mapping[str, Any]) -> WavAlignConfig:
        """Build from the resolved ``wavalign`` node. Raises :class:`ConfigError` on an unknown key or a bad value."""
        node = dict(node)
        for name, section in _SECTIONS.items():
            if name in node:
                node[name] = _build(section, node[name] or {}, f"{name}.")
        return _build(cls, node, "")


_SECTIONS: dict[str, type] = {
    "preference": PreferenceConfig,
    "anchor": AnchorConfig,
    "kl": KLConfig,
    "mixing": MixingConfig,
    "reward": RewardConfig,
    "samples": SamplesConfig,
    "watchdog": WatchdogConfig,
}
T = TypeVar("T")


def _build(cls: type[T], node: Mapping[str, Any], prefix: str) -> T:
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in node:
        _check(key in known, f"{prefix}{key}", node[key], f"known keys here are {', '.join(known)}")
    return cls(**node)
