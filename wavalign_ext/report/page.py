"""The page: the data as JSON, uPlot and our own script and style, in one HTML file.

uPlot draws the curves: well kept, MIT, 50 kB beside plotly's 4.5 MB, and it needs no network.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from wavalign_ext.report import curves
from wavalign_ext.report.answers import STEPS, WITH_AUDIO, WITHOUT_AUDIO, dumps_of, embed
from wavalign_ext.report.clips import LONGEST_S, Clips
from wavalign_ext.report.reading import Run, setting


def render(runs: Sequence[Run], budget: int) -> bytes:
    """The page as UTF-8, of about at most ``budget`` bytes."""
    from jinja2 import Environment
    from markupsafe import Markup

    groups, absent = [], []
    for title, charts in curves.groups(runs):
        drawn = {chart.title: curves.chart_data(chart, runs) for chart in charts}
        groups.append({"title": title, "charts": [data for data in drawn.values() if data]})
        absent += [name for name, data in drawn.items() if not data]
    dumps = dumps_of(runs)
    scripts = [_asset("uPlot.iife.min.js"), _asset("report.js")]
    data: dict[str, Any] = {
        "runs": [run.name for run in runs],
        "scales": [setting(run, "wavalign.reward.scale") for run in runs],
        "groups": [group for group in groups if group["charts"]],
        "dumps": dumps,
    }
    # Paths in `dumps` become ids, so the text of the page without audio is measured with them as strings.
    used = len(json.dumps(data, default=str, ensure_ascii=False).encode("utf-8", "replace")) + sum(map(len, scripts))
    clips = Clips(budget - used)
    embed(dumps, clips)
    data["mime"] = clips.mime
    html = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_asset("page.html"))
    text = html.render(
        runs=runs,
        summary=curves.summary(runs),
        settings=curves.settings(runs),
        groups=data["groups"],
        absent=absent,
        left_out=left_out(runs, clips),
        styles=Markup(_asset("uPlot.min.css") + _asset("report.css")),
        scripts=[Markup(script) for script in scripts],
        hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
        data=Markup(_json(data)),
        clips=Markup(_json(clips.data)),
    )
    return text.encode("utf-8", "replace")


def left_out(runs: Sequence[Run], clips: Clips) -> list[str]:
    """Sentences about what the runs have and the page does not."""
    said = []
    for run in runs:
        for split, name in (("validation", "validations"), ("rollouts", "steps of rollouts")):
            steps = len(run.dumps.get(split, {}))
            if steps > STEPS:
                said.append(f"{run.name}: answers of {STEPS} of {steps} {name} are here, evenly spread.")
    if any(run.dumps.get(split) for run in runs for split in run.dumps):
        said.append(
            f"Of each step there are at most {WITH_AUDIO} answers with and {WITHOUT_AUDIO} without audio: the best, "
            "the worst and some between. The curves are of all answers."
        )
    if clips.beyond_budget:
        said.append(f"Recordings left out to keep the page small: {clips.beyond_budget}; --max-mb allows more.")
    if clips.cut:
        said.append(f"Recordings longer than {LONGEST_S} s were cut there: {clips.cut}.")
    if clips.unreadable:
        said.append(f"Recordings that are named in the dumps and cannot be read: {clips.unreadable}.")
    return said


def _asset(name: str) -> str:
    return (resources.files("wavalign_ext.report") / "assets" / name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON that may stand in a script element: no "<" in it, so no text can end the element or open a comment."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
