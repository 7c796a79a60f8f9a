"""The study's figures."""

from pathlib import Path
from typing import Any

import matplotlib
from evidence.settings import TUNING_SEED

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]


def draw(stored: Any, folder: Path) -> None:
    """``study_trade.png``: content against voice by recipe; ``study_curves.png``: reward and λ by step;
    ``study_moved.png``: how far each recipe moves the start's own answers, as the paper's Figure 2."""
    folder.mkdir(parents=True, exist_ok=True)
    _trade(stored, folder / "study_trade.png")
    _curves(stored, folder / "study_curves.png")
    _moved(stored, folder / "study_moved.png")


def _trade(stored: Any, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharex=True, layout="constrained")
    recipes = stored.recipes("clean")
    for axis, name in zip(axes, ("lively", "nll_speech"), strict=True):
        for number, recipe in enumerate(recipes):
            content, voice = stored.of("clean", recipe, "score"), stored.of("clean", recipe, name)
            color = "black" if recipe == "start" else COLORS[number % 20]
            axis.plot([content.low, content.high], [voice.mean] * 2, color=color, lw=1.5)
            axis.plot([content.mean] * 2, [voice.low, voice.high], color=color, lw=1.5)
            axis.plot(content.mean, voice.mean, "o", color=color, label=recipe)
        axis.set_xlabel("IQ: graded content, 1 to 5 (better →)")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("EQ: share of lively codes (better ↑)")
    axes[1].set_ylabel("NLL of held-out speech (better ↓)")
    _legend(axes[1])
    _save(figure, path)


def _curves(stored: Any, path: Path) -> None:
    clean = stored.steps[(stored.steps.condition == "clean") & (stored.steps.seed != TUNING_SEED)]
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained")
    for axis, (name, title) in zip(axes, (("score", "score of rollouts"), ("lam", "λ")), strict=True):
        for number, recipe in enumerate(stored.recipes("clean")):
            by_step = clean[clean.recipe == recipe].groupby("step")[name].mean()
            if by_step.notna().any():
                axis.plot(by_step, color=COLORS[number % 20], label=recipe, lw=1.4)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    _legend(axes[0])
    _save(figure, path)


def _moved(stored: Any, path: Path) -> None:
    clean = stored.runs[(stored.runs.condition == "clean") & (stored.runs.seed != TUNING_SEED)]
    recipes = [recipe for recipe in stored.recipes("clean") if recipe != "start"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True, layout="constrained")
    for axis, name, title in zip(axes, ("size", "change"), ("mean size of the change", "mean change"), strict=True):
        for offset, modality, color in ((-0.2, "text", COLORS[0]), (0.2, "speech", COLORS[2])):
            values = [clean[clean.recipe == recipe][f"{name}_{modality}"] for recipe in recipes]
            places = [number + offset for number in range(len(recipes))]
            axis.barh(places, [some.mean() for some in values], 0.38, color=color, label=modality)
            for place, some in zip(places, values, strict=True):
                axis.plot([some.min(), some.max()], [place, place], color="black", lw=1)
        axis.set_xlabel(f"{title} of log p per token, nats")
        axis.grid(alpha=0.3, axis="x")
    axes[0].set_yticks(range(len(recipes)), recipes)
    axes[0].invert_yaxis()
    axes[1].legend(fontsize=8)
    _save(figure, path)


def _legend(axis: Any) -> None:
    """Right of all panels, where it hides nothing."""
    axis.figure.legend(*axis.get_legend_handles_labels(), fontsize=8, loc="outside center right")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
