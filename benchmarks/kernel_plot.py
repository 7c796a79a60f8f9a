"""The plot of `bench_kernel.py`: bars of one configuration, or curves over each thing that was swept."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def plot(rows: list[Any], base: Any, head: str, path: Path) -> Path:
    """Time above, memory below; a column per dtype, and per quantity swept."""
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    fields = ("tokens", "vocab", "share")
    swept = [f for f in fields if len({getattr(row, f) for row in rows}) > 1]
    columns = [(d, f) for d in dtypes for f in (None, *swept)]
    figure, axes = plt.subplots(2, len(columns), figsize=(4.6 * len(columns), 7.5), squeeze=False, layout="constrained")
    peers = list(dict.fromkeys(row.peer for row in rows))
    color = {peer: f"C{i % 10}" for i, peer in enumerate(peers)}
    for j, (dtype, field) in enumerate(columns):
        mine = [r for r in rows if r.dtype == dtype]
        others = [f for f in fields if f != field]
        mine = [r for r in mine if all(getattr(r, f) == getattr(base, f) for f in others)]
        for i, (value, unit) in enumerate((("ms", "ms"), ("peak_mib", "MiB above the inputs"))):
            axis = axes[i][j]
            if field is None:
                axis.barh(
                    [r.peer for r in mine], [getattr(r, value) for r in mine], color=[color[r.peer] for r in mine]
                )
                axis.invert_yaxis()
                axis.set_xlabel(unit)
                axis.set_title(f"{dtype}, T {base.tokens}, H {base.hidden}, V {base.vocab}, {base.share:.0%} active")
                continue
            for peer in peers:
                points = sorted((getattr(r, field), getattr(r, value)) for r in mine if r.peer == peer)
                axis.plot(*zip(*points, strict=True), "o-", color=color[peer], label=peer)
            axis.set(xlabel=field, ylabel=unit, title=f"{dtype}, over {field}", xlim=(0, None), ylim=(0, None))
            axis.legend(fontsize=7)
    figure.suptitle(head[2:], fontsize=6, wrap=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
