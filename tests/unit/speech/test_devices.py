"""Where codecs compute, on nodes with GPUs that are made up."""

import inspect
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from wavalign_ext.data.prepare import encode
from wavalign_ext.speech import devices
from wavalign_ext.speech.codecs import base as codec


@pytest.fixture(autouse=True)
def no_context(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever would make a CUDA context fails; the number that a test gives this process is taken back."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this makes a CUDA context")

    for name in ("_lazy_init", "current_device", "get_rng_state", "mem_get_info", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    yield
    devices.number_process(None)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)


def reward_worker(monkeypatch: pytest.MonkeyPatch, name: str | None, nodes: int = 1) -> None:
    """This process as an actor of Ray, which has a head node without CPUs too."""
    node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 8.0}}
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        get_runtime_context=lambda: SimpleNamespace(get_actor_name=lambda: name),
        nodes=lambda: [node] * nodes + [{"Alive": True, "Resources": {}}, {"Alive": False, "Resources": {"CPU": 8.0}}],
    )
    monkeypatch.setitem(sys.modules, "ray", ray)


def test_eight_reward_workers_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 8)
    chosen = []
    for number in range(8):
        reward_worker(monkeypatch, f"reward_loop_worker_{number}")
        chosen.append(devices.choose("auto"))
    assert sorted(chosen) == [f"cuda:{n}" for n in range(8)]


def test_workers_of_two_nodes_fill_the_gpus_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 4)
    chosen: dict[int, list[str]] = {0: [], 1: []}
    for number in range(8):
        reward_worker(monkeypatch, f"reward_loop_worker_{number}", nodes=2)
        chosen[number % 2].append(devices.choose("auto"))  # verl deals them to the nodes in turn
    assert chosen[0] == chosen[1] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]


def test_verl_s_reward_workers_have_the_names_that_are_read() -> None:
    from verl.experimental.reward_loop.reward_loop import RewardLoopManager

    source = inspect.getsource(RewardLoopManager._init_reward_loop_workers)
    assert 'name=f"reward_loop_worker_{i}"' in source and "node_ids[i % len(node_ids)]" in source
    assert 'node["Alive"] and node["Resources"].get("CPU", 0) > 0' in source


def test_other_processes_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 8)
    assert devices.choose("auto") == "cpu"  # no Ray
    for name in (None, "", "WorkerDict_0:0", "agent_loop_worker_3", "my_reward_loop_worker_3"):
        reward_worker(monkeypatch, name)
        assert devices.choose("auto") == "cpu"
    reward_worker(monkeypatch, "reward_loop_worker_3")
    assert devices.choose("cpu") == "cpu" and devices.choose("cuda:6") == "cuda:6"
    gpus(monkeypatch, 0)
    assert devices.choose("auto") == "cpu"


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    assert devices.choose("cuda") == "cuda:0"
    for wrong in ("gpu", "cuda:x", "CPU", "cuda:-1", "mps", ""):
        with pytest.raises(ValueError, match=rf"device={wrong!r} is not allowed: one of auto, cpu, cuda, cuda:N"):
            devices.choose(wrong)
    with pytest.raises(ValueError, match="device='cuda:2' is not there: this process sees 2 GPUs; choose auto or cpu"):
        devices.choose("cuda:2")
    gpus(monkeypatch, 0)
    with pytest.raises(ValueError, match="device='cuda' is not there: this process sees 0 GPUs"):
        devices.choose("cuda")


class OnDevice:
    sample_rate, frame_rate, codebook_size = 16000, 12.5, 8

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def encode(self, wave: np.ndarray) -> list[int]:
        return [0]

    def decode(self, codes: Any) -> np.ndarray:
        return np.zeros(0, np.float32)


@pytest.fixture
def registered(registries: None) -> None:
    codec.register_codec("on_device")(OnDevice)


def test_a_codec_gets_the_device_chosen_and_the_caller_s_wish_goes_first(
    monkeypatch: pytest.MonkeyPatch, registered: None
) -> None:
    gpus(monkeypatch, 4)
    reward_worker(monkeypatch, "reward_loop_worker_6")
    made: Any = codec.make_codec({"type": "on_device"})
    assert made.device == "cuda:2"
    made = codec.make_codec({"type": "on_device", "device": "cuda:9"}, device="cpu")  # checked where no GPU is
    assert made.device == "cpu"
    assert codec.device_of({"type": "on_device"}) == "auto" and codec.device_of({"type": "codec2"}) is None


def test_prepare_runs_two_processes_for_each_gpu_of_a_codec_that_uses_it(
    monkeypatch: pytest.MonkeyPatch, registered: None
) -> None:
    monkeypatch.setattr(encode.os, "sched_getaffinity", lambda _: range(64))
    gpus(monkeypatch, 4)
    neural, fitted = {"type": "on_device"}, {"type": "mel_vq", "path": "x"}
    assert encode.default_jobs({"heard": fitted, "spoken": fitted}) == 64
    assert encode.default_jobs({"heard": neural, "spoken": fitted}) == 8
    assert encode.default_jobs({"heard": {**neural, "device": "cuda:1"}, "spoken": fitted}) == 2
    assert encode.default_jobs({"heard": {**neural, "device": "cpu"}, "spoken": fitted}) == 64
    gpus(monkeypatch, 0)
    assert encode.default_jobs({"heard": neural, "spoken": neural}) == 64


def test_the_processes_of_prepare_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing import Value

    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(encode, "_encoder", None)
    gpus(monkeypatch, 3)
    started, encoder, chosen = Value("i", 0), object(), []
    for _ in range(5):
        encode._start(encoder, started)  # type: ignore[arg-type]
        chosen.append(devices.choose("auto"))
    assert chosen == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]


def test_a_single_process_of_prepare_uses_the_first_gpu_and_only_while_it_encodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(monkeypatch, 2)
    seen = []

    def encoder(job: Any) -> Any:
        seen.append(devices.choose("auto"))
        return "nothing"

    list(encode.encode_all([encode.Job("a", "heard")], encoder, 4))  # type: ignore[arg-type]
    assert seen == ["cuda:0"] and devices.choose("auto") == "cpu"
