"""The table beside a result of `gpu_kit.py`."""

from typing import Any


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: what was measured where, a table per stage, and what failed."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    lines = [f"# {result['date']}: {machine.get('card') or 'no GPU'}", "", f"commit {result['commit']}; {versions}"]
    for name in ("properties", "clocks"):
        values = machine.get(name) if name == "properties" else result.get(name)
        lines += [f"{name}: " + ", ".join(f"{k} {v}" for k, v in values.items())] if values else []
    if result["mode"] == "interpreted":
        lines += ["", "No GPU: small shapes, interpreted. **No time was measured.**"]
    else:
        lines += ["", "Times: device events, median of rounds in which all take turns, each after a run to warm up"]
        lines += ["and with the second-level cache overwritten. Memory: the allocator's peak above what was there."]
    for name, stage in result["stages"].items():
        took = f", {stage['seconds']} of {stage['allowed_s']} s" if "seconds" in stage else ""
        lines += ["", f"## {name}: {stage['status']}{took}", ""]
        lines += [
            f"{key}: {stage[key]}"
            for key in ("case", "model", "collected", "counts", "left_out", "note")
            if stage.get(key)
        ]
        for when in ("clocks after it", "clocks under load"):
            if stage.get(when):
                lines += [f"{when}: " + ", ".join(f"{k} {v}" for k, v in stage[when].items())]
        if stage.get("error"):
            lines += ["", "```", stage["error"], "```"]
        lines += [""] + rows_of(stage["rows"])
    return "\n".join(lines)


def rows_of(rows: list[dict[str, Any]]) -> list[str]:
    """One table; columns in the order in which rows bring them, those that nobody fills left out."""
    names = [n for n in dict.fromkeys(key for row in rows for key in row) if any(r.get(n) is not None for r in rows)]
    if not names:
        return ["(nothing)"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return lines + [f"| {' | '.join(form(row.get(name)) for name in names)} |" for row in rows]


def form(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.5g}"
    return "" if value is None else str(value).replace("|", "/").replace("\n", " ")[:160]
