"""``wavalign listen RUN``: what a run's model says: questions, answers, scores and WAV files in a table.

Reads the oldest and the newest validation dump of a run and puts each saved answer through Whisper tiny.en, whose
vocabulary is open: a recogniser that knows the domain's sentences is lenient.
"""

import argparse
from pathlib import Path
from typing import Any

from wavalign_ext.report.reading import read_dump
from wavalign_ext.speech.asr import load_recognizer, word_error_rate
from wavalign_ext.speech.audio import load_audio

ABOUT = """What a run's model says: question, text, what Whisper tiny.en hears in the speech, reward and WAV file of the
oldest and newest validation answers, as tables. They are also written beside the answers, as validation/STEP.md."""
WHISPER_RATE = 16000


def dumps_of(run: Path) -> list[Path]:
    """The validation dumps of the lowest and the highest step, or the only one. Raises SystemExit: the run has none."""
    dumps = sorted((run / "validation").glob("*.jsonl"), key=lambda path: int(path.stem))
    if not dumps:
        raise SystemExit(f"wavalign: {run}/validation has no dump: give the folder of a run that validated")
    return dumps[:1] + dumps[1:][-1:]


def played(dump: Path) -> list[dict[str, Any]]:
    """The rows of a dump whose WAV is there, each with what Whisper heard in it and the word error rate of that.

    What a running job has half written is left out, and said.
    """
    found, broken = read_dump(dump)
    rows = [row for row in found if row.get("wav") and (dump.parent / row["wav"]).is_file()]
    lost = sum(bool(row.get("wav")) for row in found) - len(rows)
    if broken or lost:
        print(f"wavalign: {dump} has {broken} lines that are no rows, and {lost} whose WAV is not there: left out")
    recognizer = load_recognizer({"type": "whisper"}) if rows else None
    for row in rows:
        assert recognizer is not None
        row["wav"] = str(dump.parent / row["wav"])
        row["whisper"] = recognizer.transcribe(load_audio(row["wav"], WHISPER_RATE), WHISPER_RATE)
        row["whisper_wer"] = word_error_rate(row["text"], row["whisper"])
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| question | text answer | Whisper hears | WER | reward | WAV |", "|---|---|---|---|---|---|"]
    for row in rows:
        reward = "missing" if row["score"] is None else f"{row['score']:.2f}"
        cells = (row["question"], row["text"], row["whisper"], f"{row['whisper_wer']:.2f}", reward, row["wav"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="wavalign listen", description=ABOUT)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, for example runs/pocket")
    for dump in dumps_of(parser.parse_args().run):
        rows = played(dump)
        text = table(rows)
        (dump.parent / f"{dump.stem}.md").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        understood = sum(row["whisper_wer"] == 0 for row in rows)
        print(f"held-out answers after step {dump.stem}, {len(rows)} of them decoded:\n{text}")
        print(f"Whisper understands {understood} of {len(rows)} word for word\n")


if __name__ == "__main__":
    main()
