"""The policy and the reference policy hold what their folder says, before verl shards them."""

from pathlib import Path
from typing import Any

from wavalign_ext.checkpoints.strict_loading import check_pretrained


class CheckedWeights:
    """Mixin of verl's FSDP engines; reads the files once more on each rank that holds weights.

    verl loads them on the first rank of every shard group, on all ranks where the head is tied to the embedding; the
    others have a model on ``meta`` and receive theirs.
    """

    def _build_module(self: Any) -> Any:
        """Raises ValueError where a tensor is not as in the folder's files."""
        module = super()._build_module()  # type: ignore[misc]
        if not any(parameter.is_meta for parameter in module.parameters()):
            folder = self.model_config.local_path
            check_pretrained(module, Path(folder), f"actor_rollout_ref.model.path={str(folder)!r}")
        return module
