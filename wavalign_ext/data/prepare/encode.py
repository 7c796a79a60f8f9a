"""Recordings to codes: in parallel, one thread per process, and each recording once in a lifetime of the output folder.

``codes/KEY.json`` and ``audio/KEY.flac`` hold a clip's codes and what they were made from, ``features/KEY.safetensors``
what an encoder heard. KEY is a hash of the file's
bytes, the codec (the version of its code, its arguments and the contents of its files) and the limits, so nothing stale
is ever found; ``codes/VERSION`` says which codecs the last run had.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wavalign_ext.data.prepare.audio import Limits, clean
from wavalign_ext.data.prepare.hear import FOLDER, Ears, device_wanted, load_coder, name_and_version
from wavalign_ext.schema import one_line
from wavalign_ext.speech import devices
from wavalign_ext.speech.audio import decode
from wavalign_ext.speech.codecs.base import SpeechCodec, codec_version
from wavalign_ext.speech.waveform import AudioError, check_length

FORMAT = 3  # of the cache: another number, and everything is encoded anew
CHUNK = 8  # clips that a process is given at once
PER_GPU = 2  # processes: one reads and trims while the other encodes


@dataclass(frozen=True)
class Job:
    """One file to encode, for the user's speech or the assistant's (``messages.HEARD``, ``SPOKEN``).

    ``data`` is the file itself where the line holds it, and ``path`` then what it is called.
    """

    path: str
    role: str
    data: bytes | None = None


@dataclass(frozen=True)
class Encoded:
    """A clip's codes (C,), where its audio lies in the output folder, its length in s, and whether it was there.

    ``features``: where the vectors lie that an encoder heard; its codes are as many zeros.
    """

    codes: np.ndarray
    audio: str
    seconds: float
    cached: bool
    features: str | None = None


def fingerprint(spec: Mapping[str, Any]) -> str:
    """A hash of a codec's version and arguments, where the contents of files and folders stand for their paths.

    Not of its device: that changes a code only where two are equally near. An encoder's is of its weights.
    """
    if "encoder" in spec:
        ears = Ears({key: value for key, value in spec.items() if key != "codec"}, "cpu").fingerprint()
        return f"{ears} {fingerprint(spec['codec'])}" if "codec" in spec else ears
    digest = hashlib.sha256(str(codec_version(spec)).encode())
    for name, value in sorted(spec.items()):
        if name == "device":
            continue
        path = Path(value) if isinstance(value, str | Path) else None
        if path is None or name == "type" or not path.exists():
            digest.update(json.dumps([name, str(value)]).encode())
            continue
        files = sorted(file for file in path.rglob("*") if _counts(file.relative_to(path))) if path.is_dir() else [path]
        for file in filter(Path.is_file, files):
            with open(file, "rb") as stream:
                contents = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(json.dumps([name, file.relative_to(path).as_posix(), contents]).encode())
    return digest.hexdigest()


def _counts(file: Path) -> bool:
    """Not what changes by itself: folders of git and of Python's bytecode."""
    return not any(part.startswith(".") or part == "__pycache__" for part in file.parts)


def note_versions(out: Path, specs: Mapping[str, Mapping[str, Any]], prints: Mapping[str, str]) -> str | None:
    """Write which codecs encode from now on; returns why codes in ``out`` cannot be used any more, or None."""
    path, there = out / "codes" / "VERSION", any((out / "codes").glob("*/*.json"))
    codecs = {}
    for role, spec in sorted(specs.items()):
        name, version = name_and_version(spec)
        codecs[role] = {"type": name, "version": version, "hash": prints[role]}
    try:
        before = json.loads(path.read_bytes())
    except (OSError, ValueError):
        before = {"format": 1, "codecs": {}}  # which had no such file
    _write(path, json.dumps({"format": FORMAT, "codecs": codecs}).encode())
    if there and before["format"] != FORMAT:
        return f"{path.parent} is of format {before['format']} and may hold wrong codes, now it is {FORMAT}"
    for role, new in codecs.items():
        old = before["codecs"].get(role)
        if not there or old is None or old["type"] != new["type"] or old["hash"] == new["hash"]:
            continue
        if old["version"] != new["version"]:
            return f"version {old['version']} of the {role} codec {new['type']!r} is now {new['version']}"
        return f"the files or arguments of the {role} codec {new['type']!r} have changed"
    return None


def default_jobs(specs: Mapping[str, Mapping[str, Any]]) -> int:
    """Processes that encode at once: ``PER_GPU`` for each GPU that a codec runs on, else one per core."""
    gpus = max(devices.spread(device_wanted(spec)) for spec in specs.values())
    return gpus * PER_GPU or len(os.sched_getaffinity(0))


class Encoder:
    """Encodes files into the cache of ``out``; ``specs`` and ``prints`` (of :func:`fingerprint`) by role."""

    def __init__(
        self, out: Path, specs: Mapping[str, Mapping[str, Any]], prints: Mapping[str, str], limits: Limits
    ) -> None:
        self.out, self.specs, self.limits = out, specs, limits
        trim = {"trim_db": limits.trim_db}  # the other limits change which clips pass, not what comes of them
        self._salt = {role: json.dumps([FORMAT, print_, trim]).encode() for role, print_ in prints.items()}
        self._codecs: dict[str, SpeechCodec | Ears] = {}

    def __call__(self, job: Job) -> Encoded | str:
        """What came of it; a string says why it cannot be used."""
        try:
            data = Path(job.path).read_bytes() if job.data is None else job.data
        except (OSError, ValueError) as error:  # ValueError: a path that no file can have
            why = "there is no such file" if isinstance(error, FileNotFoundError) else _reason(error)
            return f"{why} ({repr(job.path)[1:-1][:120]}): correct the path, or --audio-root"
        key = hashlib.sha256(self._salt[job.role] + data).hexdigest()
        codes, audio = (self.out / folder / key[:2] / f"{key}{end}" for folder, end in FILES)
        features = self.out / FOLDER / key[:2] / f"{key}.safetensors" if "encoder" in self.specs[job.role] else None
        whole = audio.is_file() and (features is None or features.is_file())
        heard = None if features is None else _name(features, self.out)
        found = _read(codes) if whole else None
        codec = None if found else self._codec(job.role)
        try:
            if found:
                check_length(found["recorded_s"], self.limits.longest_s)
                return Encoded(
                    np.array(found["codes"], np.int32), _name(audio, self.out), found["seconds"], True, heard
                )
            assert codec is not None
            samples, rate = decode(data, self.limits.longest_s)
            wave = clean(samples, rate, codec.sample_rate, self.limits)
            made = codec.encode(wave)
        except AudioError as error:
            return str(error)
        except Exception as error:  # whatever it is, it is this recording's, and the others go on
            return f"{_reason(error)}: write it again as WAV, or drop the line"
        if not made:
            return f"it is shorter than one code ({len(wave) / codec.sample_rate:.3f} s): record it again, or drop it"
        seconds = round(len(wave) / codec.sample_rate, 4)
        _write(audio, _flac(wave, codec.sample_rate))
        if features is not None:
            assert isinstance(codec, Ears)
            codec.save(features)
        _write(codes, json.dumps({"codes": made, "seconds": seconds, "recorded_s": len(samples) / rate}).encode())
        return Encoded(np.array(made, np.int32), _name(audio, self.out), seconds, False, heard)

    def _codec(self, role: str) -> SpeechCodec | Ears:
        """Loaded when the first clip is not in the cache: a second run needs no codec."""
        if role not in self._codecs:
            twin = next((other for other in self._codecs if self.specs[other] == self.specs[role]), None)
            self._codecs[role] = load_coder(self.specs[role]) if twin is None else self._codecs[twin]
        return self._codecs[role]


def encode_all(jobs: Sequence[Job], encoder: Encoder, processes: int) -> Iterator[tuple[Job, Encoded | str]]:
    """Every job with what came of it, in order, behind a progress bar.

    Raises:
        RuntimeError: a process died; what is encoded stays encoded.
    """
    bar = {"total": len(jobs), "desc": "encode", "unit": "clip"}
    with _one_thread():
        if processes == 1 or len(jobs) <= CHUNK:
            before = devices.number_process(0)
            try:
                yield from zip(jobs, tqdm(map(encoder, jobs), **bar), strict=True)
            finally:
                devices.number_process(before)
            return
        spawn = get_context("spawn")  # a fork of a process that runs torch's threads may hang
        pool = ProcessPoolExecutor(processes, spawn, _start, (encoder, spawn.Value("i", 0)))
        try:
            yield from zip(jobs, tqdm(pool.map(_work, jobs, chunksize=CHUNK), **bar), strict=True)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died, perhaps for lack of memory: run again with fewer --jobs"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


FILES = (("codes", ".json"), ("audio", ".flac"))
_encoder: Encoder | None = None  # of a worker process


def _start(encoder: Encoder, started: Any) -> None:
    """``started`` counts the pool's processes."""
    import torch

    global _encoder
    with started.get_lock():
        devices.number_process(started.value)
        started.value += 1
    torch.set_num_threads(1)
    _encoder = encoder


def _work(job: Job) -> Encoded | str:
    assert _encoder is not None
    return _encoder(job)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread here, and in processes started from here: threads of many processes wait for each other.

    The number of threads may also change the last bits of a sum, and with them a code.
    """
    import torch

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before, threads = {name: os.environ.get(name) for name in names}, torch.get_num_threads()
    os.environ.update(dict.fromkeys(names, "1"))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(f"{type(error).__name__}: {error}")


def _read(path: Path) -> dict[str, Any] | None:
    """A clip's entry; None where there is none that can be read, as after a full disk."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= {"codes", "seconds", "recorded_s"} else None


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, whoever else writes the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)


def _flac(wave: np.ndarray, rate: int) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
