"""SenseVoice's front-end: Kaldi filter banks, stacked to a low frame rate, shifted and scaled.

Source: modelscope/FunASR, funasr/frontends/wav_frontend.py, with the options of SenseVoiceSmall's config.yaml; but
without FunASR's dither (1.0 there), which makes the features of a quiet recording random.
"""

from pathlib import Path

import torch

MELS, STACK, STEP = 80, 7, 6  # FunASR's n_mels, lfr_m, lfr_n
WINDOW, HOP = 400, 160  # samples at 16 kHz: frame_length 25 ms, frame_shift 10 ms


def fbank(wave: torch.Tensor) -> torch.Tensor:
    """Log-mel filter banks (1 + (S - 400) // 160, 80) of a waveform (S,) at 16 kHz in [-1, 1]."""
    from torchaudio.compliance import kaldi

    return kaldi.fbank(
        wave[None] * 2**15,  # Kaldi counts in 16-bit steps
        num_mel_bins=MELS,
        frame_length=25,
        frame_shift=10,
        dither=0.0,
        energy_floor=0.0,
        window_type="hamming",
        sample_frequency=16000,
    )


def stack_frames(frames: torch.Tensor) -> torch.Tensor:
    """(T, M) to (ceil(T / 6), 7 M): row i holds frames 6 i - 3 to 6 i + 3, the ends repeated."""
    first = STEP * torch.arange(-(-len(frames) // STEP))
    index = first[:, None] + torch.arange(STACK) - STACK // 2
    return frames[index.clamp(0, len(frames) - 1)].flatten(1)


def read_cmvn(path: Path) -> torch.Tensor:
    """(2, N) of an ``am.mvn``: what to add, then what to multiply by. Raises ValueError when it is not such a file."""
    lines = path.read_text(errors="replace").splitlines()
    rows = []
    for block in ("<AddShift>", "<Rescale>"):
        at = next((i for i, line in enumerate(lines) if line.startswith(block)), len(lines))
        try:
            values = lines[at + 1].split("[")[1].split("]")[0].split()
            rows.append([float(value) for value in values])
        except (IndexError, ValueError) as error:
            raise ValueError(f"{str(path)!r} has no numbers after {block}: copy am.mvn of SenseVoiceSmall") from error
    if [len(row) for row in rows] != [MELS * STACK] * 2:
        raise ValueError(
            f"{str(path)!r} has {len(rows[0])} and {len(rows[1])} numbers, not {MELS * STACK}: "
            "copy am.mvn of SenseVoiceSmall"
        )
    return torch.tensor(rows)
