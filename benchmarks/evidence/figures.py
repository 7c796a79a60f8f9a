"""The figures of docs/evidence.md."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from evidence.measure import MEASURES
from evidence.plan import PROMPTS, RECIPES

Frame = Any  # a pandas.DataFrame, whose annotations are narrower than its behaviour
COLOURS = dict(zip(RECIPES, plt.get_cmap("tab10").colors, strict=False)) | {"start": "black"}  # type: ignore[attr-defined]
SHOWN = ("exact", "wer_own", "mos", "likeness")


def draw(stored: dict[str, Frame], folder: Path) -> None:
    """``evidence_measures.png``, ``evidence_curves.png`` and, where diagnosed, ``evidence_channels.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    _measures(stored["answers"], folder / "evidence_measures.png")
    _curves(stored["curves"], folder / "evidence_curves.png")
    if "channels" in stored:
        _channels(stored["channels"], folder / "evidence_channels.png")


def _measures(answers: Frame, path: Path) -> None:
    from evidence.tables import ORDER, of_recipe

    recipes = [r for r in ORDER if ((answers.recipe == r) & (answers.noise == 0)).any()]
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(13, 3.2), sharey=True)
    for axis, name in zip(axes, SHOWN, strict=True):
        for place, recipe in enumerate(reversed(recipes)):
            found = of_recipe(answers, recipe, 0.0, name)
            axis.plot([found.low, found.high], [place, place], color=COLOURS[recipe], lw=2)
            axis.plot(found.mean, place, "o", color=COLOURS[recipe])
        axis.set_title(f"{MEASURES[name][0]}", fontsize=8)
        axis.set_xlabel("better →" if MEASURES[name][1] == "up" else "← better", fontsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(recipes)), list(reversed(recipes)))
    _save(figure, path)


def _curves(curves: Frame, path: Path) -> None:
    clean = curves[curves.noise == 0].copy()
    # All recipes meet the same prompts at a step, and prompts differ more than recipes.
    clean["gain"] = clean.reward - clean.groupby(["seed", "step"]).reward.transform("mean")
    names = {
        "gain": "reward, less all recipes' mean",
        "lambda": "λ",
        "kl_text": "KL, text",
        "kl_speech": "KL, speech",
    }
    figure, axes = plt.subplots(1, len(names), figsize=(13, 3.2))
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for recipe, group in clean.groupby("recipe"):
            by_step = group.groupby("step")[name]
            axis.plot(by_step.mean(), color=COLOURS[str(recipe)], label=recipe, lw=1.3)
            axis.fill_between(by_step.min().index, by_step.min(), by_step.max(), color=COLOURS[str(recipe)], alpha=0.12)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc=(0.35, 0.55))
    _save(figure, path)


def _channels(channels: Frame, path: Path) -> None:
    panels = (
        ("gradient norm", ("norm_text", "norm_speech")),
        ("cosine", ("cosine_text_speech", "cosine_text_anchor", "cosine_speech_anchor")),
        ("signal: ‖mean‖ over root mean square", ("signal_text", "signal_speech")),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3.2))
    for axis, (title, names) in zip(axes, panels, strict=True):
        for name in names:
            by_step = channels.groupby("step")[name]
            axis.errorbar(
                by_step.mean().index,
                by_step.mean(),
                [by_step.mean() - by_step.min(), by_step.max() - by_step.mean()],
                marker="o",
                capsize=3,
                label=name.replace("_", " "),
            )
        axis.set_title(title, fontsize=9)
        if "signal" in title:
            axis.axhline(PROMPTS**-0.5, color="grey", ls="--", lw=1, label="nothing in common")
        axis.set_xlabel("step of grpo_joint", fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:  # type: ignore[name-defined]
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
