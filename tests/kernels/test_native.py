"""Where C cannot be built, PyTorch's answer is the same, and a warning says what is missing."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from wavalign_kernels import amx, avx512, linear_logprob, native

UNITS = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
pytestmark = pytest.mark.skipif(
    "avx512f" not in UNITS or shutil.which("cc") is None, reason="needs a CPU with AVX-512 and a cc"
)


@pytest.fixture
def not_yet_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in (amx, avx512):
        module.library.cache_clear()
    yield
    for module in (amx, avx512):
        module.library.cache_clear()


@pytest.mark.parametrize("dtype, source", [(torch.float32, "avx512.c"), (torch.bfloat16, "amx.c")])
@pytest.mark.usefixtures("not_yet_loaded")
def test_without_a_compiler_the_answer_is_the_same(dtype, source, monkeypatch):
    if source == "amx.c" and not set(UNITS) >= amx.UNITS:
        pytest.skip("needs a CPU with AMX")
    h, w, y = torch.randn(40, 64).to(dtype), torch.randn(507, 64).to(dtype), torch.randint(507, (40,))
    fast = linear_logprob(h, w, y, impl="torch")
    monkeypatch.setenv("CC", "no-such-compiler")
    amx.library.cache_clear()
    avx512.library.cache_clear()
    with pytest.warns(UserWarning, match=rf"(?s){source} .*no-such-compiler.*needed: .*a C compiler"):
        slow = linear_logprob(h, w, y, impl="torch")
    torch.testing.assert_close(slow, fast, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("not_yet_loaded")
def test_built_once_on_a_machine_and_anew_after_a_change(monkeypatch, tmp_path):
    built, header = [], tmp_path / "another.h"
    header.write_text("")

    def run(command, **options):
        built.append(command)
        return subprocess_run(command, **options)

    subprocess_run = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    for compiler, header_file in (
        ("cc", native.HEADER),
        ("cc", native.HEADER),
        ("cc -g", native.HEADER),
        ("cc", header),
    ):
        monkeypatch.setenv("CC", compiler)
        monkeypatch.setattr(native, "HEADER", header_file)
        avx512.library.cache_clear()
        assert avx512.library() is not None
    assert [command[:2] for command in built] == [["cc", "-O3"], ["cc", "-g"], ["cc", "-O3"]]
    assert len(list((tmp_path / "wavalign_kernels").iterdir())) == 3
