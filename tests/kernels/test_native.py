"""Where C cannot be built, PyTorch's answer is the same, and a warning says what is missing."""

import os
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


def open_to(mode: int):
    return lambda folder, library, monkeypatch: folder.chmod(mode)


def linked(folder, library, monkeypatch):
    library.rename(folder / "elsewhere.so")
    library.symlink_to(folder / "elsewhere.so")


def open_above(folder, library, monkeypatch):
    folder.parent.chmod(0o777)


def a_link_into_an_open_folder(folder, library, monkeypatch):
    shared = folder.parent / "shared"
    folder.rename(shared)
    shared.chmod(0o777)
    folder.symlink_to(shared)


def somebody_elses(folder, library, monkeypatch):
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)


OPEN_TO_OTHERS = {
    "folder others write": open_to(0o707),
    "folder the group writes": open_to(0o770),
    "sticky folder": open_to(0o1777),
    "library others write": lambda folder, library, monkeypatch: library.chmod(0o702),
    "library the group writes": lambda folder, library, monkeypatch: library.chmod(0o720),
    "library a link": linked,
    "folder above": open_above,
    "link to an open folder": a_link_into_an_open_folder,
    "somebody else's": somebody_elses,
}


@builds
@pytest.mark.parametrize("opened", OPEN_TO_OTHERS.values(), ids=OPEN_TO_OTHERS)
@pytest.mark.usefixtures("not_yet_loaded")
def test_no_code_is_loaded_that_others_can_change(opened, tmp_path, monkeypatch):
    """One line says which file and why, and PyTorch does the work."""
    h, w, y = torch.randn(40, 64), torch.randn(507, 64), torch.randint(507, (40,))
    fast = linear_logprob(h, w, y, impl="torch")
    folder = tmp_path / "wavalign_kernels"
    (library,) = folder.glob("avx512-*.so")
    opened(folder, library, monkeypatch)
    avx512.library.cache_clear()
    with pytest.warns(UserWarning, match=r"others can change /.*allowed: your own.*chmod go-w") as caught:
        slow = linear_logprob(h, w, y, impl="torch")
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    torch.testing.assert_close(slow, fast, rtol=1e-5, atol=1e-5)


@builds
@pytest.mark.usefixtures("not_yet_loaded")
def test_a_link_to_a_folder_of_ones_own_and_a_generous_umask_are_fine(tmp_path):
    (tmp_path / "far").mkdir(mode=0o700)
    (tmp_path / "wavalign_kernels").symlink_to(tmp_path / "far")
    before = os.umask(0o002)
    try:
        assert avx512.library() is not None
    finally:
        os.umask(before)
    avx512.library.cache_clear()
    assert avx512.library() is not None


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
