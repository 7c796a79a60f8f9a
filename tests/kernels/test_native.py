"""Where C cannot be built, PyTorch's answer is the same, and a warning says what is missing."""

import shutil
import subprocess
import warnings

import pytest
import torch
from c_compiler import can_run
from wavalign_kernels import amx, avx512, linear_logprob, native

FP32, BF16 = (can_run(module.UNITS, module.OPTIONS) for module in (avx512, amx))
builds = pytest.mark.skipif(not FP32, reason="needs a CPU with AVX-512 and a cc that knows it")


@pytest.fixture
def not_yet_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in (amx, avx512):
        module.library.cache_clear()
    yield
    for module in (amx, avx512):
        module.library.cache_clear()


@builds
@pytest.mark.parametrize("dtype, source", [(torch.float32, "avx512.c"), (torch.bfloat16, "amx.c")])
@pytest.mark.parametrize("compiler", ["no-such-compiler", "'cc"])
@pytest.mark.usefixtures("not_yet_loaded")
def test_without_a_compiler_the_answer_is_the_same(dtype, source, compiler, monkeypatch):
    if source == "amx.c" and not BF16:
        pytest.skip("needs a CPU with AMX")
    h, w, y = torch.randn(40, 64).to(dtype), torch.randn(507, 64).to(dtype), torch.randint(507, (40,))
    fast = linear_logprob(h, w, y, impl="torch")
    monkeypatch.setenv("CC", compiler)
    amx.library.cache_clear()
    avx512.library.cache_clear()
    with pytest.warns(UserWarning, match=rf"(?s){source} \(.*needed: .*a C compiler"):
        slow = linear_logprob(h, w, y, impl="torch")
    torch.testing.assert_close(slow, fast, rtol=1e-5, atol=1e-5)


def test_silent_where_the_cpu_lacks_the_units():
    with warnings.catch_warnings(action="error"):
        assert native.load("avx512.c", {"no-such-unit"}, ["-no-such-option"], without="", needs="") is None


@builds
@pytest.mark.usefixtures("not_yet_loaded")
def test_built_once_for_a_user_and_anew_after_a_change(monkeypatch, tmp_path):
    built, here = [], tmp_path / "here"
    shutil.copytree(native.HERE, here, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(native, "HERE", here)
    monkeypatch.setattr(native, "HEADER", here / native.HEADER.name)
    subprocess_run = subprocess.run

    def run(command, **options):
        built.append(command)
        return subprocess_run(command, **options)

    def touched(file):
        file.write_text(file.read_text() + "/* changed */\n")

    monkeypatch.setattr(subprocess, "run", run)
    changes = {
        "nothing": lambda: None,
        "options": lambda: monkeypatch.setenv("CC", "cc -g"),
        "source": lambda: touched(here / "avx512.c"),
        "header": lambda: touched(native.HEADER),
    }
    assert avx512.library() is not None
    for change, make in changes.items():
        before = len(built)
        make()
        avx512.library.cache_clear()
        assert avx512.library() is not None and len(built) == before + (change != "nothing"), change
    assert len(list((tmp_path / "wavalign_kernels").glob("*.so"))) == len(built) == 4
