"""Evaluation that feeds a GPU: on a CPU, where it can be tested, its ways change no value."""

import numpy as np
import pytest
import torch

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import NoTokensError
from avdistill.inference import runner
from avdistill.inference.runner import run_network
from avdistill.inputs import VideoInput
from avdistill.models.registry import build_model
from avdistill.types import Features

VIEW = VideoInput(frames=4, size=(24, 32))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model("shifted_frames", 3, {"width": 8}).eval()


@pytest.fixture
def a_gpu(monkeypatch):
    """The CPU, treated as a GPU: memory is pinned, copies have events; returns what happened in order."""
    happened = []

    class Event:
        def record(self):
            self.number = sum(what == "computed" for what, _ in happened)
            happened.append(("computed", self.number))

        def synchronize(self):
            happened.append(("taken", self.number))

    class Device(str):
        type = "cuda"

    def pin(tensor):
        happened.append(("pinned", tuple(tensor.shape[1:])))
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    plain = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *a, **o: self if isinstance(a[0], Device) else plain(self, *a, **o)
    )
    monkeypatch.setattr(runner, "_device_of", lambda network: Device("cuda"))
    return happened


def assert_equal(found, expected):
    for name in ("embedding", "logits", "probabilities", "present", "tokens"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 3])
def test_a_batch_is_computed_while_the_one_before_is_copied_and_no_value_differs(
    prepared, network, a_gpu, workers, monkeypatch
):
    dataset = ClipDataset(prepared)
    clips = np.arange(0, len(dataset), 3)
    options = {"batch_size": 4, "workers": workers, "with_tokens": True}
    found = run_network(network, dataset, clips, VIEW, **options)
    order = [each for each in a_gpu if each[0] != "pinned"]
    batches = len(order) // 2
    assert batches > 3
    assert order[:3] == [("computed", 0), ("computed", 1), ("taken", 0)]
    assert [number for what, number in order if what == "taken"] == list(range(batches))
    assert all(order.index(("taken", i)) > order.index(("computed", min(i + 1, batches - 1))) for i in range(batches))
    assert [each for each in a_gpu if each[0] == "pinned"] == [("pinned", (4, 24, 32, 3))] * batches
    a_gpu.clear()
    monkeypatch.setattr(runner, "_device_of", lambda network: torch.device("cpu"))
    expected = run_network(network, dataset, clips, VIEW, **options)
    assert a_gpu == []
    assert_equal(found, expected)


def test_precision_is_float32_on_a_cpu_unless_asked_for(prepared, network):
    dataset = ClipDataset(prepared)
    clips = np.arange(0, len(dataset), 6)
    auto, full, half = (
        run_network(network, dataset, clips, VIEW, precision=precision, with_tokens=True)
        for precision in ("auto", "float32", "bfloat16")
    )
    assert_equal(auto, full)
    assert half.embedding.dtype == half.tokens.dtype == torch.float32
    difference = (half.embedding - full.embedding).abs().max()
    assert 0 < difference < 0.05 * full.embedding.abs().max()


def test_an_error_of_the_network_ends_the_run_and_leaves_its_mode(prepared, network):
    class NoTokens(torch.nn.Module):
        modality, embedding_dim = "video", 4

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, inputs):
            return Features(embedding=inputs.flatten(2).mean(2))

    without = NoTokens().train()
    with pytest.raises(NoTokensError, match="no feature map"):
        run_network(without, ClipDataset(prepared), np.arange(4), VIEW, with_tokens=True)
    assert without.training
