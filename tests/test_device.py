"""Which devices a process computes on, where torch, the driver and the environment disagree."""

from __future__ import annotations

import logging
import os

import pytest
import torch

from slm import device
from slm.engine.distributed import prepare_environment
from slm.errors import MachineError


@pytest.fixture
def host(monkeypatch, tmp_path):
    """`host(gpus, broken=…)`: a host with so many GPUs; torch can't use them for the reason `broken`."""

    def make(gpus: int, broken: str = "", driver: bool = True):
        for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)
        usable = 0 if broken else gpus
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)

        def init():
            if broken:
                raise RuntimeError(broken + "\nand more")

        monkeypatch.setattr(torch.cuda, "init", init)
        file = tmp_path / "nvidiactl"
        if driver:
            file.touch()
        monkeypatch.setattr(device, "DRIVER", file)
        return monkeypatch

    return make


def test_gpus_are_counted_unless_the_cpu_is_asked_for(host):
    environment = host(4)
    assert device.gpu_count() == 4 and device.best_device().type == "cuda" and device.why_no_gpu() == ""
    for name, value in (("DS_ACCELERATOR", "cpu"), ("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1")):
        with environment.context() as once:
            once.setenv(name, value)
            assert device.gpu_count() == 0 and device.best_device().type == "cpu"


def test_a_gpu_that_torch_cannot_use_is_no_silent_cpu(host, caplog):
    environment = host(8, broken="The NVIDIA driver on your system is too old")
    with pytest.raises(MachineError, match="too old") as error:
        prepare_environment()
    assert "and more" not in str(error.value) and "DS_ACCELERATOR" not in os.environ
    with caplog.at_level(logging.WARNING):
        assert device.best_device().type == "cpu"
    assert "too old" in caplog.text
    environment.setenv("DS_ACCELERATOR", "cpu")
    assert device.why_no_gpu() == ""


def test_where_a_batch_system_gave_no_gpu_the_cpu_is_right(host, caplog):
    host(0, broken="No CUDA GPUs are available")
    assert device.why_no_gpu() == "" and device.best_device().type == "cpu"
    host(0, broken="Torch not compiled with CUDA enabled", driver=False)
    (device.DRIVER).unlink(missing_ok=True)
    assert device.why_no_gpu() == "" and device.best_device().type == "cpu"
    assert not caplog.text


@pytest.mark.parametrize(
    ("visible", "count", "wanted"), [(None, 4, ["0", "1", "2", "3", "0"]), ("5,7", 2, ["5", "7", "5"])]
)
def test_processes_take_the_gpus_in_turn(host, visible, count, wanted):
    environment = host(count)
    for number, name in enumerate(wanted):
        if visible is not None:
            environment.setenv("CUDA_VISIBLE_DEVICES", visible)
        else:
            environment.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        device.take_own_gpu(number)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == name


def test_a_process_with_one_gpu_or_none_keeps_what_it_has(host):
    for count in (0, 1):
        host(count)
        device.take_own_gpu(3)
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
