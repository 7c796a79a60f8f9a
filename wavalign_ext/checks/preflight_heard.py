"""What a user who is heard through an encoder needs of model, configuration and rows, before Ray starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wavalign_ext.config import ConfigError
from wavalign_ext.integration.lora import adapters, targets
from wavalign_ext.models import MODEL_TYPE
from wavalign_ext.models.names import PROJECTION
from wavalign_ext.parallel.config import HEARING_TYPE
from wavalign_ext.schema import refusal
from wavalign_ext.speech.heard import HEARD_FEATURES, FeatureFile, read_header
from wavalign_ext.speech.layout import ResolvedLayout

MANAGER = "wavalign_ext.rollout.hearing.HearingManager"
LINEARS = ("mlp.0", "linear1", "linear", "layers.0", "layers.3")  # of the projectors
SEQUENCE_PARALLEL = tuple(
    f"actor_rollout_ref.{part}ulysses_sequence_parallel_size"
    for part in ("actor.", "ref.", "actor.fsdp_config.", "ref.fsdp_config.")
)


def check_hearing(config: DictConfig, layout: ResolvedLayout, model_config: Any) -> None:
    """Raises :class:`ConfigError`: layout and model hear in different ways, or a key that cannot go with it."""
    facts, path = layout.layout.encoder, config.actor_rollout_ref.model.path
    hears = model_config.model_type in (MODEL_TYPE, HEARING_TYPE)
    where = f"layout {layout.layout.name!r}"
    if hears != (facts is not None):
        how, remedy = ("through an encoder", "speech tokens"), "convert the model (wavalign convert), or choose another"
        layout_, model = how[facts is None], how[not hears]
        raise ConfigError(f"{where} hears {layout_}, the model {path!r} ({model_config.model_type}) {model}: {remedy}")
    if facts is None:
        return
    wanted = {"audio_feature_size": facts.size, "audio_most": facts.most, "audio_encoder": facts.type}
    if facts.placeholder is not None:
        wanted["audio_token_id"] = layout.user_speech_start
    elif layout.around_user is not None:
        wanted["media_begin"] = layout.around_user[0]
    for name, value in wanted.items():
        if (found := getattr(model_config, name, None)) != value:
            raise ConfigError(f"the model {path!r} has {name}={found!r}, {where} {value!r}: use the model's own layout")
    for key, (ok, why) in _rules(config).items():
        if not ok:
            raise ConfigError(refusal(key, OmegaConf.select(config, key), why))


def _rules(config: DictConfig) -> dict[str, tuple[bool, str]]:
    model = config.actor_rollout_ref.model
    sliced = "ids are cut to ranks before they are embedded, and placeholders would lose their vectors: set it to 1"
    rules = {key: ((OmegaConf.select(config, key) or 1) == 1, sliced) for key in SEQUENCE_PARALLEL}
    manager = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
    rules[manager] = (bool(OmegaConf.select(config, manager)), f"{MANAGER}, as in wavalign/base, or yours over it")
    if adapters(model):
        rules["actor_rollout_ref.model.exclude_modules"] = (
            not any(targets(model, f"{PROJECTION}.{linear}") for linear in LINEARS),
            f"the projector is trained, not adapted: set it to '.*{PROJECTION}.*'",
        )
        rules["actor_rollout_ref.model.lora"] = (
            bool(OmegaConf.select(model, "lora.merge")),
            "vLLM would get the adapters without the trained projector: set actor_rollout_ref.model.lora.merge=true",
        )
    return rules


class HeardRows:
    """Checks the feature files of rows against their prompts, the layout, and each other."""

    def __init__(self, layout: ResolvedLayout, root: str | None) -> None:
        self.layout, self.root = layout, Path(root or ".")
        self.first: tuple[str, FeatureFile] | None = None

    def __call__(self, row: Mapping[str, Any], ids: Sequence[int], where: str) -> None:
        """Raises :class:`ConfigError`: no features, of another encoder, or not as many as the prompt's placeholders."""
        facts = self.layout.layout.encoder
        names = list(row.get(HEARD_FEATURES) or ())
        if facts is None:
            if names:
                raise ConfigError(
                    f"{where}: {HEARD_FEATURES} are for a model that hears through an encoder, layout "
                    f"{self.layout.layout.name!r} hears tokens: run wavalign prepare with this layout"
                )
            return
        if not names:
            remedy = "run wavalign prepare with this layout"
            raise ConfigError(f"{where}: no {HEARD_FEATURES}, which layout {self.layout.layout.name!r} hears: {remedy}")
        try:
            files = [read_header(self.root / name) for name in names]
        except ValueError as error:
            raise ConfigError(f"{where}: {error}, or set wavalign.audio_root") from error
        for file in files:
            self._check(file, where)
        counts = _runs(ids, self.layout)
        stands = "codes" if facts.placeholder is None else f"placeholders {facts.placeholder}"
        if counts != [file.frames for file in files]:
            raise ConfigError(
                f"{where}: the prompt has {counts} {stands} for vectors of "
                f"{[file.frames for file in files]} frames: run wavalign prepare again"
            )

    def _check(self, file: FeatureFile, where: str) -> None:
        facts = self.layout.layout.encoder
        assert facts is not None
        if (file.encoder, file.size) != (facts.type, facts.size):
            raise ConfigError(
                f"{where}: heard by the encoder {file.encoder!r} ({file.size} numbers per vector), layout "
                f"{self.layout.layout.name!r} hears by {facts.type!r} ({facts.size}): run wavalign prepare with its own"
            )
        if not 0 < file.frames <= facts.most:
            raise ConfigError(f"{where}: a recording of {file.frames} vectors, 1 to {facts.most} are allowed: cut it")
        if self.first is None:
            self.first = (where, file)
        elif file.fingerprint != self.first[1].fingerprint:
            raise ConfigError(
                f"{where}: heard by other weights of {file.encoder!r} than {self.first[0]}: prepare all rows by one"
            )


def _runs(ids: Sequence[int], layout: ResolvedLayout) -> list[int]:
    """Lengths of the runs of the user's speech; codes elsewhere are of an earlier answer."""
    heard = range(layout.user_speech_start, layout.user_speech_end)
    begin = layout.around_user[0] if layout.around_user is not None and len(heard) > 1 else None
    found, counted, before = [], False, None
    for i in ids:
        if i in heard and before not in heard:
            counted = begin is None or before == begin
            found += [0] if counted else []
        if i in heard and counted:
            found[-1] += 1
        before = i
    return found
