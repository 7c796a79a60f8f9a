"""verl's dataset for spoken dialogues: prompts for the rollout, targets for the anchor.

A target's speech is long, and verl copies a dataset row into each of its n rollouts; so the target stays here and the
trainer asks for it by the row's index.
"""

from typing import Any

from verl.utils.dataset.rl_dataset import RLHFDataset

TARGET_TEXT, TARGET_SPEECH = "target_text", "target_speech"


class SpokenDataset(RLHFDataset):
    """Rows of verl's format plus ``target_text`` (str) and ``target_speech`` (list of codec ids, 0-based)."""

    def __getitem__(self, item: int) -> dict[str, Any]:
        row = super().__getitem__(item)
        row.pop(TARGET_TEXT, None)
        row.pop(TARGET_SPEECH, None)
        return row

    def targets(self) -> dict[int, tuple[str, list[int]]]:
        """``{extra_info.index: (target text, target codes)}`` for every row.

        Raises:
            ValueError: two rows share an index, so a rollout could not find its own target.
        """
        found: dict[int, tuple[str, list[int]]] = {}
        columns = (self.dataframe["extra_info"], self.dataframe[TARGET_TEXT], self.dataframe[TARGET_SPEECH])
        for info, text, codes in zip(*columns, strict=True):
            if info["index"] in found:
                raise ValueError(f"extra_info.index={info['index']} occurs twice: give every row its own index")
            found[info["index"]] = (text, list(codes))
        return found
