"""``wavalign prepare FILE.jsonl --out DIR``: see :mod:`wavalign_ext.data.prepare`."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wavalign_ext.data.prepare.audio import Limits
from wavalign_ext.data.prepare.shapes import SHAPES
from wavalign_ext.schema import one_line
from wavalign_ext.speech.waveform import AudioError

ABOUT = """Spoken dialogues in JSONL to verl's parquet. A line has: messages (chat messages, <|audio|> where a recording
belongs), audios (the files, in that order), target_text and target_audio (the answer), and optionally question_text,
keywords (words that a right answer has), rejected_text and rejected_audio (a worse answer, for the objectives over
pairs), task_type, data_source, id. The field names of the public WavAlign release, such as sft_target_text and
sft_target_audio, are understood. Every line is checked; a second run encodes only what is new. See docs/data.md."""


def main(argv: Sequence[str] | None = None) -> int:
    """0: written; 1: lines are wrong (and were not to be skipped) or none is left; 2: wrong arguments."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"wavalign: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wavalign prepare", description=ABOUT)
    parser.add_argument(
        "file", type=Path, metavar="FILE.jsonl", help="a dialogue per line, or a JSON list of dialogues"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="parquet, audio and the cache go here")
    parser.add_argument("--layout", default="pocket", metavar="NAME", help="or its YAML file (default: %(default)s)")
    parser.add_argument("--tokenizer", metavar="PATH", help="folder of the model; pocket has its own")
    parser.add_argument("--codec", metavar="YAML", help="as wavalign.codec: '{type: transformers, path: …}', or a file")
    parser.add_argument("--input-codec", metavar="YAML", help="of the user's speech, where it is another one")
    parser.add_argument(
        "--encoder", metavar="YAML", help="of a layout with user_speech: continuous: '{type: sensevoice, path: …}'"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="let the tokenizer run code of its folder")
    parser.add_argument(
        "--audio-root", type=Path, metavar="DIR", help="where relative paths start; default: the folder of FILE.jsonl"
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="system message of dialogues without one; default: the layout's"
    )
    parser.add_argument("--data-source", metavar="NAME", help="data_source of lines without one; default: FILE")
    parser.add_argument(
        "--val-share", type=_share, default=0.05, metavar="SHARE", help="held out as val.parquet (default: %(default)s)"
    )
    parser.add_argument(
        "--format",
        choices=("auto", *SHAPES),
        default="auto",
        help="whose lines they are; default: found out for each line, and printed",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave wrong lines out and list them in rejects.jsonl")
    parser.add_argument("--show", type=int, default=50, metavar="N", help="wrong lines shown (default: %(default)s)")
    parser.add_argument(
        "--max-seconds", type=float, default=Limits.longest_s, metavar="S", help="longest clip (default: %(default)s)"
    )
    parser.add_argument(
        "--trim-db",
        type=float,
        default=Limits.trim_db,
        metavar="DB",
        help="silence at the ends is what stays this far below the peak; 0: no trimming (default: %(default)s)",
    )
    parser.add_argument(
        "--max-prompt-length", type=int, metavar="TOKENS", help="as data.max_prompt_length; default: any length"
    )
    parser.add_argument(
        "--max-response-length",
        type=int,
        metavar="TOKENS",
        help="as data.max_response_length; default: any length",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="processes; default: 2 for each GPU of a codec that uses it, else the cores",
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    if not args.file.is_file():
        raise ValueError(f"{str(args.file)!r} is not a file: give JSONL, a dialogue per line")
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs={args.jobs} is not allowed: at least 1")
    from wavalign_ext.data.prepare.files import write_rejects
    from wavalign_ext.data.prepare.lines import read_lines
    from wavalign_ext.data.prepare.setup import set_up

    setup = set_up(args.layout, args.tokenizer, args.codec, args.input_codec, args.trust_remote_code, args.encoder)
    lines = list(read_lines(args.file, args.format, setup.layout.speaks))
    _say_shapes(lines)
    args.out.mkdir(parents=True, exist_ok=True)
    encoded = _encode(args, setup, lines)
    made = _make_rows(args, setup, lines, encoded)
    bad = [line for line in lines if line.problems]
    _say_bad(args, bad)
    if bad and not args.skip_bad:
        print("wavalign: nothing was written: correct these lines, or leave them out with --skip-bad", file=sys.stderr)
        return 1
    if not made:
        print(f"wavalign: {args.file} has no line that can be used: nothing was written", file=sys.stderr)
        return 1
    if bad:
        write_rejects(args.out / "rejects.jsonl", bad)
    else:
        (args.out / "rejects.jsonl").unlink(missing_ok=True)  # of an earlier run
    _write(args, made)
    _say_next(args, lines, made, setup.layout.layout.name)
    return 0


def _encode(args: argparse.Namespace, setup: Any, lines: list[Any]) -> dict[Any, Any]:
    """Every clip once, and how fast it went."""
    from wavalign_ext.data.prepare.encode import Encoder, default_jobs, encode_all, fingerprint, note_versions

    wanted = (job for line in lines if line.sample for job in _jobs(args, line.sample).values())
    jobs = list(dict.fromkeys(job for job in wanted if not isinstance(job, str)))
    prints = {role: fingerprint(spec) for role, spec in setup.specs.items()}
    encoder = Encoder(args.out, setup.specs, prints, Limits(args.max_seconds, args.trim_db))
    stale = note_versions(args.out, setup.specs, prints)
    if stale:
        print(f"wavalign: {stale}: every recording that was not encoded so is encoded again", flush=True)
    processes = args.jobs or default_jobs(setup.specs)
    began = time.monotonic()
    found = dict(encode_all(jobs, encoder, processes))
    wall_s = time.monotonic() - began
    done = [one for one in found.values() if not isinstance(one, str)]
    new_s = sum(one.seconds for one in done if not one.cached)
    new, old = (sum(one.cached == cached for one in done) for cached in (False, True))
    speed = f", {new_s:.1f} s of speech in {wall_s:.1f} s: {new_s / max(wall_s, 1e-9):.1f} × real time"
    how = f"{speed} with {processes} jobs" if new else ""
    print(f"wavalign: {new} clips encoded{how}; {old} were there already", flush=True)
    heard = [one for one in done if one.features]
    if heard:
        size = sum((args.out / one.features).stat().st_size for one in heard) / len(heard) / 1024
        vectors = sum(len(one.codes) for one in heard) / len(heard)
        told = f"{len(heard)} of them through the encoder, {vectors:.0f} vectors and {size:.0f} KiB each on average"
        print(f"wavalign: {told}", flush=True)
    return found


def _say_shapes(lines: list[Any]) -> None:
    shapes = Counter(line.shape for line in lines if line.shape)
    if set(shapes) - {"wavalign"}:
        found = ", ".join(f"{count} as {shape}" for shape, count in sorted(shapes.items()))
        print(f"wavalign: lines are read {found} (--format)", flush=True)


def _jobs(args: argparse.Namespace, sample: Any) -> dict[str, Any]:
    """By the clip's name, what has to be encoded; a string says why it cannot be."""
    from wavalign_ext.data.prepare.encode import Job
    from wavalign_ext.data.prepare.sources import locate

    def job(clip: Any) -> Any:
        try:
            found = locate(clip.source, args.audio_root or args.file.parent)
        except AudioError as error:
            return str(error)
        return Job(clip.name, clip.role, found) if isinstance(found, bytes) else Job(found, clip.role)

    return {clip.name: job(clip) for clip in sample.clips}


def _make_rows(args: argparse.Namespace, setup: Any, lines: list[Any], encoded: dict[Any, Any]) -> list[Any]:
    """(line, what its row is made of, its clips) of every good line; the others are told what is wrong."""
    from wavalign_ext.data.prepare.messages import SampleError
    from wavalign_ext.data.prepare.rows import RowMaker

    maker = RowMaker(setup, args.system, args.max_prompt_length, args.max_response_length)
    made = []
    for line in lines:
        if line.sample is None:
            continue
        jobs = _jobs(args, line.sample)
        found = {name: job if isinstance(job, str) else encoded[job] for name, job in jobs.items()}
        sources = {clip.name: clip.source for clip in line.sample.clips}
        line.problems += [SampleError(name, sources[name], why) for name, why in found.items() if isinstance(why, str)]
        if line.problems:
            continue
        try:
            codes = {name: one.codes for name, one in found.items() if not isinstance(one, str)}
            made.append((line, maker(line.sample, codes), found))
        except SampleError as error:
            line.problems.append(error)
        except Exception as error:  # whatever it is, it is this line's, and the others go on
            why = one_line(f"{type(error).__name__}: {error}")
            line.problems.append(SampleError("line", line.text, f"makes no row ({why}): drop it"))
    return made


def _write(args: argparse.Namespace, made: list[Any]) -> None:
    from wavalign_ext.data.prepare.files import digest, join_audio, split_off, write_parquet
    from wavalign_ext.data.prepare.rows import verl_row
    from wavalign_ext.speech.heard import HEARD_FEATURES

    # What an encoder heard is not in the prompt, but in files named by their contents.
    heard = [[clips[clip.name].features for clip in line.sample.heard] for line, _, clips in made]
    asked = [[checked.prompt, *filter(None, names)] for (_, checked, _), names in zip(made, heard, strict=True)]
    held_out = split_off([digest(*question) for question in asked], args.val_share)
    rows: dict[str, list[Any]] = {"train": [], "val": []}
    for position, (line, checked, clips) in enumerate(made):
        split = "val" if position in held_out else "train"
        info = {
            "index": line.number,
            "split": split,
            "question_audio": join_audio(args.out, [clips[clip.name].audio for clip in line.sample.asked]),
            "answer_audio": join_audio(args.out, [clips[clip.name].audio for clip in line.sample.target]),
        }
        row = verl_row(line.sample, checked, info, args.data_source or args.file.stem)
        rows[split].append(row | ({HEARD_FEATURES: heard[position]} if any(heard[position]) else {}))
    for split, some in rows.items():
        if some:
            write_parquet(args.out / f"{split}.parquet", some)
        else:
            (args.out / f"{split}.parquet").unlink(missing_ok=True)  # of an earlier run
    print(f"wavalign: {args.out}: " + ", ".join(f"{split}.parquet {len(some)} rows" for split, some in rows.items()))


def _say_bad(args: argparse.Namespace, bad: list[Any]) -> None:
    for line in bad[: args.show]:
        for problem in line.problems:
            print(f"wavalign: {args.file}, line {line.number}, {problem}", file=sys.stderr)
    if bad:
        more = f"; {len(bad) - args.show} not shown (--show)" if len(bad) > args.show else ""
        where = f", left out: see {args.out / 'rejects.jsonl'}" if args.skip_bad else ""
        print(f"wavalign: {len(bad)} lines are wrong{more}{where}", file=sys.stderr)


def _say_next(args: argparse.Namespace, lines: list[Any], made: list[Any], layout: str) -> None:
    """The longest lengths, fields that nobody reads, and the command that trains on the files."""
    longest = [max(getattr(checked, name) for _, checked, _ in made) for name in ("prompt_tokens", "target_tokens")]
    ignored = sorted({name for line in lines if line.sample for name in line.sample.ignored})
    if ignored:
        print(f"wavalign: fields that nothing reads: {', '.join(ignored)}")
    files = {split: str(args.out / f"{split}.parquet") for split in ("train", "val")}
    if not Path(files["val"]).is_file():
        print("wavalign: no validation rows: verl wants some (--val-share)")
        files["val"] = "OTHER.parquet"
    # Other models have recipes of their own, with the layout and the codec in them.
    recipe = "+recipe=wavalign" if layout == "pocket" else "+recipe=YOUR_RECIPE"
    print(
        "wavalign: train on it with\n"
        f"  python -m verl.trainer.main_ppo {recipe} \\\n"
        f"    data.train_files={files['train']} data.val_files={files['val']} wavalign.audio_root={args.out} \\\n"
        f"    data.max_prompt_length={longest[0]} data.max_response_length={longest[1]}  # the longest found; no less"
    )


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: a number in [0, 1)")
    return share
