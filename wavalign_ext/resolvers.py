"""OmegaConf resolvers that the recipes use."""

from omegaconf import OmegaConf


def register() -> None:
    """Register ``${wavalign.pocket:PATH}``: a path inside the embedded default's asset folder."""
    OmegaConf.register_new_resolver("wavalign.pocket", _pocket, replace=True)


def _pocket(inside: str) -> str:
    from wavalign_ext.pocket import pocket_dir

    return str(pocket_dir() / inside)
