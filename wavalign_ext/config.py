"""The ``wavalign`` node of a recipe, checked once, before Ray starts.

The defaults here are the paper's (arXiv 2604.14932) and stand in ``recipes/wavalign_recipes/wavalign/base.yaml`` as
well, where a recipe shows them; a test holds the two together. Importing this module needs neither torch nor verl.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from wavalign_ext.schema import ConfigError, Section, build, plain, refusal

__all__ = ["ConfigError", "WavAlignConfig"]

MODALITIES = ("text", "speech")
KEY = "wavalign"
RENAMED = {
    "boundaries": "boundary_modality",
    "heard_codec": "input_codec",
    "hold_schedule": "constrained_decoding",
    "samples": "audio_dump",
    "audio_dump.count": "audio_dump.max_answers",
    "mixing.gate_centre": "mixing.reward_threshold",
    "mixing.gate_slope": "mixing.reward_sharpness",
    "mixing.smoothing": "mixing.ema_decay",
    "watchdog.check_s": "watchdog.poll_interval_s",
    "watchdog.silent_s": "watchdog.heartbeat_timeout_s",
    "watchdog.step_s": "watchdog.step_timeout_s",
}
"""Keys of earlier versions, by what they are called now."""


def _scale(pair: tuple[float, float]) -> tuple[float, float]:
    if not pair[0] < pair[1]:
        raise ValueError("[low, high] with low < high")
    return pair


def _layout(layout: Any) -> Any:
    if not isinstance(layout, str | dict):
        raise ValueError("the name or the file of a layout, or its keys as a mapping")
    return layout


class TokenChoice(Section):
    """Which tokens a loss acts on, and how much each counts."""

    tokens: Literal["all", "text", "speech"]
    text_weight: float = Field(default=1.0, ge=0)
    speech_weight: float = Field(default=1.0, ge=0)

    @property
    def acts(self) -> bool:
        """Whether any token has a weight."""
        text, speech = (
            self.tokens != "speech" and self.text_weight > 0,
            self.tokens != "text" and self.speech_weight > 0,
        )
        return text or speech


class PairsConfig(Section):
    """What the objectives over pairs take (docs/preference.md)."""

    beta: float = Field(default=0.1, gt=0)
    """β, how much a gap between the two answers counts: large keeps the policy near the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """How often the order of a pair is taken to be wrong, with ``objective: dpo``."""
    reference_free: bool = False
    """Whether the gap is the policy's alone, without the reference policy's."""
    length_normalized: bool = False
    """Whether an answer counts by the mean log-prob of its preferred tokens, not by the sum."""
    target_margin: float = Field(default=0.0, ge=0)
    """γ, the least that β times the gap shall be, with ``objective: dpo``. With ``reference_free`` and
    ``length_normalized`` it is SimPO's (arXiv 2405.14734)."""
    min_gap: float | None = Field(default=None, ge=0)
    """The least difference in reward between the best and the worst rollout of a prompt. Null: a quarter of the reward
    scale's width, 1 on 1 to 5."""


class PreferenceConfig(TokenChoice):
    """The policy gradient on rollouts (w_t of docs/method.md)."""

    tokens: Literal["all", "text", "speech"] = "text"
    """On which tokens of a rollout it acts."""
    text_weight: float = Field(default=1.0, ge=0)
    """How much a text token counts in a rollout's mean."""
    speech_weight: float = Field(default=1.0, ge=0)
    """How much a speech token counts in a rollout's mean."""
    advantage: Literal["grpo", "rloo"] = "grpo"
    """How a reward becomes an advantage. ``grpo``: minus the mean of the prompt's rollouts, over their standard
    deviation (without the latter where ``algorithm.norm_adv_by_std_in_grpo=false``: Dr. GRPO, arXiv 2503.20783).
    ``rloo``: minus the mean of the prompt's other rollouts (arXiv 2402.14740)."""
    objective: Literal["grpo", "dpo", "ipo"] = "grpo"
    """``grpo``: a policy gradient on all rollouts. ``dpo``, ``ipo``: the better of two answers against the worse."""
    pairs: PairsConfig = PairsConfig()
    """What ``dpo`` and ``ipo`` take."""

    @model_validator(mode="after")
    def _only_keys_of_its_objective(self) -> Self:
        unused = {"pairs": list(PairsConfig.model_fields)} if self.objective == "grpo" else {"": ["advantage"]}
        if self.objective == "ipo":
            unused["pairs"] = ["label_smoothing", "target_margin"]
        for section, names in unused.items():
            node = self.pairs if section else self
            for name in names:
                value, default = getattr(node, name), type(node).model_fields[name].default
                if value != default:
                    key = f"{KEY}.preference.{section}{'.' * bool(section)}{name}"
                    why = f"preference.objective={self.objective} does not use it. Leave it at {plain(default)}."
                    raise ConfigError(refusal(key, value, why))
        return self

    @property
    def paired(self) -> bool:
        """Whether the objective is over pairs of answers."""
        return self.objective != "grpo"


class AnchorConfig(TokenChoice):
    """The supervised loss on the target response (v_t of docs/method.md)."""

    tokens: Literal["all", "text", "speech"] = "all"
    """On which tokens of the target it acts."""
    text_weight: float = Field(default=1.0, ge=0)
    """How much a text token counts in a target's mean."""
    speech_weight: float = Field(default=1.0, ge=0)
    """How much a speech token counts in a target's mean."""


class KLConfig(Section):
    """Coefficients of the k3 penalty against the reference policy, each with a mask and denominator of its own."""

    text: float = Field(default=1e-3, ge=0)
    """β of the rollouts' text tokens; 0 switches the term off."""
    speech: float = Field(default=1e-3, ge=0)
    """β of the rollouts' speech tokens, whichever tokens the preference acts on; 0 switches the term off."""


class MixingConfig(Section):
    """How λ, the weight of the preference loss, is found."""

    type: Literal["adaptive", "fixed"] = "adaptive"
    """``adaptive`` reads λ from the rewards of each step; ``fixed`` is ``value`` at every step."""
    value: float | None = Field(default=None, ge=0, le=1)
    """λ where ``type`` is fixed: 1 is the preference alone, 0 the anchor alone."""
    lambda_max: float = Field(default=0.8, ge=0, le=1)
    """The most that an adaptive λ can be."""
    ema_decay: float = Field(default=0.9, ge=0, lt=1)
    """α of the moving average over steps: how much of the last λ stays."""
    scope: Literal["step", "prompt"] = "step"
    """``step``: one λ for all rows (the paper's). ``prompt``: the rows of a prompt have a λ of their own, (1 − α) times
    its own gate plus α times the last λ; their mean is the step's λ. With ``ema_decay: 0`` it is the prompt's gate
    alone: where all rollouts are wrong, only the anchor trains."""
    reward_threshold: float | None = None
    """τ, the best reward of a prompt at which its gate is half open. Null: the middle of the reward scale."""
    reward_sharpness: float | None = Field(default=None, gt=0)
    """k, how steeply the gate opens. Null: 20 over the width of the reward scale."""
    variance_scale: float | None = Field(default=None, gt=0)
    """v0, the variance of a prompt's rewards that counts as full. Null: the largest that the scale allows."""

    @model_validator(mode="after")
    def _only_keys_of_its_type(self) -> Self:
        if self.type == "fixed":
            if self.value is None:
                raise ConfigError(refusal(f"{KEY}.mixing.value", None, "a number in [0, 1] with mixing.type=fixed."))
            unused = ("lambda_max", "ema_decay", "scope", "reward_threshold", "reward_sharpness", "variance_scale")
        else:
            unused = ("value",)
        for name in unused:
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                left = "null" if default is None else default
                why = f"mixing.type={self.type} does not use it. Leave it at {left}, or change mixing.type."
                raise ConfigError(refusal(f"{KEY}.mixing.{name}", value, why))
        return self


class RoutesConfig(Section):
    """Which reward terms drive which tokens; see ``wavalign_ext/rewards/routing.py``."""

    text: list[str] | None = None
    """Names of the terms whose weighted mean drives the text tokens. Null: the total drives them."""
    speech: list[str] | None = None
    """Names of the terms whose weighted mean drives the speech tokens. Null: the total drives them."""


class RewardConfig(Section):
    """The declared scale of the reward, its terms, and which of them drive which tokens."""

    scale: Annotated[tuple[float, float], Field(strict=False), AfterValidator(_scale)] = (1.0, 5.0)
    """[low, high] that every term scores on."""
    terms: Annotated[dict[str, Any], BeforeValidator(lambda terms: {} if terms is None else terms)] = Field(
        default_factory=dict
    )
    """``name: {weight: 1, type: name, ...}``. The weights are divided by their sum; a term of weight 0 is scored and
    shown but does not count. The other keys are the term's own. Null: none, where nothing is scored."""
    routes: RoutesConfig = RoutesConfig()
    """Terms of one modality's own."""
    timeout_s: float = Field(default=120.0, gt=0)
    """A term that has scored no answer for so many seconds has failed for those that wait for it."""

    @model_validator(mode="after")
    def _terms_and_routes(self) -> Self:
        for name, term in self.terms.items():
            _check_term(f"{KEY}.reward.terms.{name}", term)
        counted = [name for name, term in self.terms.items() if term.get("weight", 1) > 0]
        for route in MODALITIES:
            names = getattr(self.routes, route)
            if names is not None and (not names or not set(names) <= set(counted)):
                why = f"a list of terms with a positive weight ({', '.join(counted)}), or null."
                raise ConfigError(refusal(f"{KEY}.reward.routes.{route}", names, why))
        return self

    @property
    def routed(self) -> dict[str, list[str]]:
        """Terms by modality, where a modality has its own."""
        return {route: names for route in MODALITIES if (names := getattr(self.routes, route)) is not None}

    @property
    def group_metrics(self) -> list[str]:
        """What ``algorithm.filter_groups`` can compare the rollouts of a prompt by: numbers that each of them has."""
        return ["reward", *(f"reward_{route}" for route in self.routed), *(f"score_{term}" for term in self.terms)]


def _check_term(key: str, term: Any) -> None:
    if not isinstance(term, Mapping):
        raise ConfigError(refusal(key, term, "a mapping such as {weight: 1.0}."))
    weight, kind = term.get("weight", 1.0), term.get("type", "")
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight < 0:
        raise ConfigError(refusal(f"{key}.weight", weight, "a number ≥ 0. Left out, it is 1."))
    if not isinstance(kind, str):
        raise ConfigError(refusal(f"{key}.type", kind, "the name of a term. Left out, it is the name of the node."))


class AudioSamplingConfig(Section):
    """How the audio stream is drawn where text and speech have streams of their own. Its temperature is the text's."""

    top_k: int | None = Field(default=None, ge=1)
    """How many of the likeliest audio ids are drawn from. Null: as ``actor_rollout_ref.rollout.top_k``."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """The share of probability that is drawn from. Null: as the text's."""


class WatchdogConfig(Section):
    """A run ends when a worker is lost or a step does not end; see ``wavalign_ext/trainer/watchdog.py``."""

    poll_interval_s: float = Field(default=5.0, gt=0)
    """Seconds between two looks at the workers."""
    heartbeat_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds without an answer after which a worker counts as lost; twice as many where reward terms or agent loops
    run, whose event loop something may hold up."""
    step_timeout_s: float | None = Field(default=None, gt=0)
    """The most seconds that a step may take. Null: by the run's own pace; each phase of a step (rollouts, training,
    weights, saving, validation) may take ten times its longest so far, and at least two minutes."""
    start_timeout_s: float = Field(default=3600.0, gt=0)
    """The most seconds that the start of a run may take, and a phase that it has not gone through yet."""


class HealthConfig(Section):
    """Which steps are built on. One that is not healthy is never saved; see ``wavalign_ext/trainer/health.py``."""

    stop_after_steps: int = Field(default=3, ge=1)
    """The run ends after so many unhealthy steps in a row: a number that is not finite or has exploded, or no answer
    with a reward."""
    explosion_factor: float = Field(default=10.0, gt=1)
    """How many times its median over the last 50 healthy steps the loss, the gradient's norm or the entropy may be."""
    missing_rollouts: float = Field(default=0.0, ge=0, lt=1)
    """The share of a step's rollouts that may be missing because their agent loop failed; more of them end the run."""


class UpdateConfig(Section):
    """How an update computes; neither key changes its result."""

    one_pass: bool = True
    """The fused head makes the loss and its gradient together, where it can: with ``policy_loss.loss_mode=vanilla``."""
    skip_old_log_probs: bool = True
    """Where one optimiser step follows a batch, the update's own log-probs are the old ones, and verl's pass for them
    is left out."""


class AudioDumpConfig(Section):
    """What is kept to listen to of a logged step."""

    max_answers: int = Field(default=8, ge=0)
    """How many answers are decoded to WAV."""


class WavAlignConfig(Section):
    """Everything under ``wavalign`` in a recipe."""

    layout: Annotated[Any, AfterValidator(_layout)]
    """How text and speech tokens alternate: the name of a layout, its file, or its keys; see docs/layouts.md."""
    codec: dict[str, Any]
    """The codec of the answers: ``{type: NAME, ...}``, its other keys being the codec's own."""
    input_codec: dict[str, Any] | None = None
    """The codec of the user's speech, where it is another one."""
    audio_root: str | None = None
    """The folder that ``question_audio`` and ``answer_audio`` of the data are relative to. Null: the current one."""
    boundary_modality: Literal["speech", "text", "ignore"] = "speech"
    """What the tokens between text and speech count as."""
    preference: PreferenceConfig = PreferenceConfig()
    """The policy gradient on rollouts."""
    anchor: AnchorConfig = AnchorConfig()
    """The supervised loss on the target response."""
    kl: KLConfig = KLConfig()
    """The penalty against the reference policy."""
    mixing: MixingConfig = MixingConfig()
    """λ, the weight of the preference against the anchor."""
    reward: RewardConfig = RewardConfig()
    """What is scored."""
    audio_dump: AudioDumpConfig = AudioDumpConfig()
    """What is kept to listen to."""
    update: UpdateConfig = UpdateConfig()
    """How an update computes."""
    audio_sampling: AudioSamplingConfig = AudioSamplingConfig()
    """Sampling settings of the audio stream, of layouts with two."""
    constrained_decoding: bool = False
    """Rollouts may only say what the layout's schedule lets come next; see ``rollout/schedule_logits_processor.py``."""
    seeded_sampling: bool = True
    """Each rollout has a seed of its own, so that a run can be repeated; see ``wavalign_ext/rollout/agent_loop.py``."""
    health: HealthConfig = HealthConfig()
    """Which steps are built on."""
    watchdog: WatchdogConfig = WatchdogConfig()
    """When a run that waits for ever is ended."""

    @model_validator(mode="after")
    def _what_is_weighed_acts(self) -> Self:
        never = ", or set wavalign.mixing={type: fixed, value: %d}"
        for name, section, used, without in (
            ("preference", self.preference, self.uses_preference, never % 0),
            ("anchor", self.anchor, self.uses_anchor, never % 1),
        ):
            if used and not section.acts:
                key = f"{KEY}.{name}.{'speech' if section.tokens == 'speech' else 'text'}_weight"
                why = (
                    f"with tokens={section.tokens} no token has a weight, but λ gives the loss one. Raise it{without}."
                )
                raise ConfigError(refusal(key, getattr(section, key.rsplit(".", 1)[1]), why))
        return self

    @model_validator(mode="after")
    def _a_pair_has_one_order(self) -> Self:
        if self.preference.paired and self.reward.routed:
            why = f"preference.objective={self.preference.objective} orders answers by the total. Take it out."
            route, names = next(iter(self.reward.routed.items()))
            raise ConfigError(refusal(f"{KEY}.reward.routes.{route}", names, why))
        return self

    @property
    def min_gap(self) -> float:
        """The least difference in reward between the two answers of a pair of rollouts."""
        low, high = self.reward.scale
        return (high - low) / 4 if self.preference.pairs.min_gap is None else self.preference.pairs.min_gap

    @property
    def referenced(self) -> frozenset[str]:
        """The modalities whose tokens the reference policy scores: of a KL term, and of an objective over pairs."""
        of_pairs = self.preference.paired and not self.preference.pairs.reference_free
        chosen = MODALITIES if self.preference.tokens == "all" else (self.preference.tokens,)
        kl = [name for name in MODALITIES if getattr(self.kl, name) > 0]
        return frozenset(kl) | (frozenset(chosen) if of_pairs else frozenset())

    @property
    def uses_preference(self) -> bool:
        """False only where the preference's weight, λ, is 0 at every step."""
        return (self.mixing.value if self.mixing.type == "fixed" else self.mixing.lambda_max) != 0

    @property
    def uses_anchor(self) -> bool:
        """False only where the anchor's weight, 1 − λ, is 0 at every step."""
        return not (self.mixing.type == "fixed" and self.mixing.value == 1)

    @classmethod
    def from_mapping(cls, node: Any) -> "WavAlignConfig":
        """Build from the resolved ``wavalign`` node. Raises :class:`ConfigError` on an unknown key or a bad value."""
        for old, new in RENAMED.items():
            section, _, name = old.rpartition(".")
            place = node.get(section) if section and isinstance(node, Mapping) else node
            if isinstance(place, Mapping) and name in place:
                raise ConfigError(refusal(f"{KEY}.{old}", place[name], f"this key is {KEY}.{new} now."))
        return build(cls, node, KEY)
