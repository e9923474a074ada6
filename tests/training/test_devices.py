"""Devices: which there are, in which precision they compute, and memory that runs out, in any library's words."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from nlzoo.core import recipe_spec, view_spec
from nlzoo.core.errors import OutOfMemory, UsageError
from nlzoo.training import devices, evaluate
from nlzoo.videos import listing, loader

HAS_BF16 = devices.cpu_has_bf16  # conftest has another in its place
SAID = [  # as torch, CUDA, cuDNN, cuBLAS, Metal and the CPU's allocator say it
    "CUDA out of memory. Tried to allocate 20.00 MiB",
    "CUDA error: out of memory",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB)",
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
]


def test_a_device_that_is_not_here():
    for name in ("cuda:99", "meta", "hpu", "privateuseone", "vulkan", "gpu", "", "cpu:x"):
        with pytest.raises(UsageError, match=rf"^device '{name}' cannot be used here.*; these can: .*cpu$"):
            devices.resolve(name)
    with pytest.raises(UsageError, match="device 'meta' cannot"):
        devices.resolve(torch.device("meta"))


@pytest.mark.parametrize("name, meant", [("CPU", "did you mean cpu? omit"), ("meta", "omit --device")])
def test_a_device_near_to_one_that_is_here_is_told(name, meant):
    with pytest.raises(UsageError) as refused:
        devices.resolve(name)
    assert refused.value.hint.startswith(meant)


def test_precision(seed):
    cpu = torch.device("cpu")
    for precision, dtype in (
        ("auto", torch.float32),
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ):
        how = recipe_spec.Recipe(precision=precision)
        with devices.autocast(how, cpu):
            assert nn.Linear(3, 2)(torch.randn(1, 3)).dtype is dtype
        assert devices.scaler(how, cpu).is_enabled() is (precision == "fp16")
        with devices.autocast(how, cpu, training=False):  # answers are not rounded, whatever the training was
            assert nn.Linear(3, 2)(torch.randn(1, 3)).dtype is torch.float32


def test_a_processor_that_has_bf16_trains_in_it(monkeypatch):
    cpu, auto = torch.device("cpu"), recipe_spec.Recipe()
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    assert devices.precision(auto, cpu)[0] == "bf16" and not devices.scaler(auto, cpu).is_enabled()
    assert devices.precision(auto, cpu, training=False)[0] == "fp32"
    assert devices.precision(recipe_spec.Recipe(precision="fp32"), cpu)[0] == "fp32"


@pytest.mark.parametrize("has", [{}, {"avx512_f": True}, {"avx512_bf16": True}, {"amx_bf16": True, "amx_tile": True}])
def test_what_a_processor_has_is_torchs_answer(has, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert HAS_BF16() is any("bf16" in name for name in has)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as torch 2.9 has none
    assert HAS_BF16() is False


# --- memory


@pytest.mark.parametrize("text", SAID)
def test_out_of_memory_is_known_in_every_librarys_words(text):
    assert devices.is_out_of_memory(RuntimeError(text))
    with pytest.raises(OutOfMemory, match="^the device ran out of memory with one video$"):
        with devices.memory_errors("one video"):
            raise RuntimeError(text)


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), OSError()])
def test_another_error_stays_what_it_is(error):
    assert not devices.is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, devices.memory_errors("one video"):
        raise error
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        devices.InParts(raising(error), 4)(torch.zeros(4))
    assert caught.value is error


def raising(error):
    def function(part):
        raise error

    return function


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 8, 100])
def test_parts_are_halved_until_they_fit_and_give_the_same_rows(fits):
    sizes = []

    def twice(part):
        sizes.append(len(part))
        if len(part) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return part * 2

    in_parts, rows = devices.InParts(twice, 8), torch.randn(11, 3)
    assert torch.equal(in_parts(rows), rows * 2)
    assert in_parts.most == max(n for n in (1, 2, 4, 8) if n <= fits)
    sizes.clear()
    assert torch.equal(in_parts(rows), rows * 2) and max(sizes) <= fits  # it does not try again what did not fit


def test_what_a_failed_attempt_held_is_let_go_before_the_next():
    held = []

    def function(part):
        if len(part) > 2:
            big = torch.zeros(1000)
            held.append(weakref.ref(big))
            raise torch.OutOfMemoryError("CUDA out of memory")
        gc.collect()
        assert held and all(ref() is None for ref in held)
        return part

    gc.disable()
    try:
        devices.InParts(function, 8)(torch.zeros(8))
    finally:
        gc.enable()


def test_a_single_clip_that_does_not_fit_is_said():
    with pytest.raises(OutOfMemory, match="with a single clip") as caught:
        devices.InParts(raising(RuntimeError(SAID[2])), 8)(torch.zeros(3))
    assert "--batch" not in caught.value.hint and "--device cpu" in caught.value.hint


def test_predictions_go_on_with_fewer_clips_where_memory_is_short(drawn_videos, tiny_network, monkeypatch):
    source = loader.Clips(drawn_videos, items(drawn_videos), tiny_network.spec.clip, views=view_spec.ViewSpec(4))
    cpu = torch.device("cpu")
    want = {index: scores for index, scores, _ in evaluate.probabilities(tiny_network, source, cpu)}
    plain = tiny_network.forward

    def forward(inputs):
        if len(inputs) > 3:
            raise RuntimeError(SAID[3])
        return plain(inputs)

    monkeypatch.setattr(tiny_network, "forward", forward)
    rows = list(evaluate.probabilities(tiny_network, source, cpu))
    assert len(rows) == len(want) == 4
    for index, scores, reason in rows:
        assert reason == "" and np.allclose(scores, want[index], atol=1e-6)


def items(folder):
    paths = sorted(folder.rglob("*.mp4"))
    return tuple(listing.Item(str(path.relative_to(folder)), (path.parent.name,)) for path in paths)


@pytest.fixture
def drawn_videos(tmp_path):
    from nlzoo.apps import draw

    draw.write_videos(tmp_path, draw.DEMO[:2], 2, 0, 8, (32, 40))
    return tmp_path


@pytest.fixture
def tiny_network():
    from nlzoo.core.model_spec import Inflation
    from nlzoo.networks import model

    net, _ = model.inflate("tiny", None, Inflation(), "res3:1", lambda repo: pytest.fail("no network"), 4)
    net.spec = dataclasses.replace(net.spec, clip=view_spec.ClipSpec(4, None, 32))
    model.set_head(net, ("a", "b"))
    nn.init.normal_(net.fc.weight)
    return net
