"""The study's figures."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]


def draw(stored: Any, folder: Path) -> None:
    """``study_trade.png``: content against voice by recipe; ``study_curves.png``: reward and λ by step."""
    folder.mkdir(parents=True, exist_ok=True)
    _trade(stored, folder / "study_trade.png")
    _curves(stored, folder / "study_curves.png")


def _trade(stored: Any, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True)
    recipes = stored.recipes("clean")
    for axis, name in zip(axes, ("lively", "nll_speech"), strict=True):
        for number, recipe in enumerate(recipes):
            content, voice = stored.of("clean", recipe, "score"), stored.of("clean", recipe, name)
            color = "black" if recipe == "start" else COLORS[number % 10]
            axis.plot([content.low, content.high], [voice.mean] * 2, color=color, lw=1.5)
            axis.plot([content.mean] * 2, [voice.low, voice.high], color=color, lw=1.5)
            axis.plot(content.mean, voice.mean, "o", color=color, label=recipe)
        axis.set_xlabel("IQ: graded content, 1 to 5 (better →)")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("EQ: share of lively codes (better ↑)")
    axes[1].set_ylabel("NLL of held-out speech (better ↓)")
    axes[1].legend(fontsize=8)
    _save(figure, path)


def _curves(stored: Any, path: Path) -> None:
    clean = stored.steps[stored.steps.condition == "clean"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
    for axis, (name, title) in zip(axes, (("score", "score of rollouts"), ("lam", "λ")), strict=True):
        for number, recipe in enumerate(stored.recipes("clean")):
            by_step = clean[clean.recipe == recipe].groupby("step")[name].mean()
            if by_step.notna().any():
                axis.plot(by_step, color=COLORS[number % 10], label=recipe, lw=1.4)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
