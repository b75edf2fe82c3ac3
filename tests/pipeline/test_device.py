"""`--device`, on machines of several kinds."""

from __future__ import annotations

import pytest
import torch

from hmdc_hub.errors import DeviceError
from hmdc_hub.pipeline.device import available, pick


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    gpus, mps = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("machine", "here", "auto"),
    [
        ((0, False), ["cpu"], "cpu"),
        ((2, False), ["cuda:0", "cuda:1", "cpu"], "cuda:0"),
        ((0, True), ["mps", "cpu"], "cpu"),
    ],
    indirect=["machine"],
)
def test_auto(machine: None, here: list[str], auto: str) -> None:
    assert available() == here and pick("auto") == torch.device(auto)
    assert [str(pick(name)) for name in here] == here


@pytest.mark.parametrize("machine", [(2, False)], indirect=True)
def test_cuda_is_the_first_gpu(machine: None) -> None:
    assert pick("cuda") == pick(torch.device("cuda")) == torch.device("cuda:0")
    assert pick(torch.device("cuda", 1)) == torch.device("cuda:1") and pick(torch.device("cpu")).type == "cpu"


@pytest.mark.parametrize("machine", [(1, False)], indirect=True)
@pytest.mark.parametrize("name", ["cuda:1", "mps", "gpu", "", "CPU", "meta", "cuda:"])
def test_a_device_that_is_not_here(machine: None, name: str) -> None:
    with pytest.raises(DeviceError, match="this machine has cuda:0, cpu") as caught:
        pick(name)
    assert "--device" in caught.value.hint


@pytest.mark.gpu
def test_auto_takes_the_gpu() -> None:
    assert pick("auto").type == "cuda"
