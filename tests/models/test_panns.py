"""PANNs in plain PyTorch against the published classes, and their checkpoints on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from avdistill.errors import CheckpointError
from avdistill.models.panns import PowerLogMel, slaney_mel_filters
from avdistill.models.pretrained import Download, fetch, load_panns
from avdistill.models.registry import build_model
from support.golden_rule import ruled_weights
from support.panns_module import load_panns_inference

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "panns.json").read_text())
FRONT_END = {
    "spectrogram_extractor.stft.conv_real.weight": torch.zeros(513, 1, 1024),
    "spectrogram_extractor.stft.conv_imag.weight": torch.zeros(513, 1, 1024),
    "logmel_extractor.melW": slaney_mel_filters(bands=64, bins=513, sample_rate_hz=32000, low_hz=50, high_hz=14000),
}


def audio_of(case):
    rng = np.random.default_rng(case["seed"] + 1000)
    return torch.tensor(0.1 * rng.standard_normal((2, 32000)), dtype=torch.float32)


def assert_within(value, expected, tolerance=1e-4):
    torch.testing.assert_close(value.double(), torch.tensor(expected).double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["model"])
def test_embeddings_are_those_of_the_published_classes(case):
    network = build_model(case["model"], 527).eval()
    missing, unexpected = network.load_state_dict(ruled_weights(case["spec"], case["seed"]), strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    with torch.no_grad():
        log_mel = network.log_mel(audio_of(case))
        features = network(audio_of(case))
    assert_within(log_mel[0, 50], case["log_mel_clip0_frame50"], 1e-3)  # decibels
    assert_within(log_mel.double().sum(), case["log_mel_sum"])
    assert_within(features.embedding[:, :64], case["embedding_first64"])
    assert_within(features.embedding.double().norm(dim=1), case["embedding_l2"])
    assert_within(features.logits.sigmoid()[:, :16], case["scores_first16"])
    assert features.tokens.shape == (2, features.tokens.shape[1], network.embedding_dim)


def test_cnn14_is_the_class_of_panns_inference():
    published = load_panns_inference()
    if published is None:
        pytest.skip("panns-inference with torchlibrosa and librosa is not installed (pip install 'avdistill[panns]')")
    theirs = published.Cnn14(32000, 1024, 320, 64, 50, 14000, 5).eval()
    ours = build_model("cnn14", 5).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    audio = 0.1 * torch.randn(2, 24000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, features = theirs(audio), ours(audio)
    torch.testing.assert_close(features.embedding, expected["embedding"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.logits.sigmoid(), expected["clipwise_output"], atol=1e-4, rtol=1e-4)


def test_tokens_of_a_map_that_is_the_same_everywhere_are_the_embedding():
    network = build_model("cnn6", 3).eval()
    with torch.no_grad():
        network.conv_block4.bn1.weight.zero_()
        network.conv_block4.bn1.bias.copy_(torch.rand(512))
        features = network(torch.randn(2, 16000))
    torch.testing.assert_close(features.tokens, features.embedding[:, None].expand_as(features.tokens))


def test_other_rates_have_the_windows_of_panns_and_short_audio_is_repeated():
    for rate, points in ((32000, 1024), (16000, 512), (8000, 256)):
        front = PowerLogMel(rate)
        assert front.filters.shape == (points // 2 + 1, 64)
        assert front(torch.randn(1, rate)).shape == (1, 101, 64)
        assert front(torch.randn(1, 1000)).shape[1] >= 32
    network = build_model("cnn10", 3, {"sample_rate_hz": 16000}).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 100)).embedding.shape == (2, 512)
    with pytest.raises(Exception, match="8000, 16000 or 32000, found 44100"):
        build_model("cnn10", 3, {"sample_rate_hz": 44100})


@pytest.mark.parametrize("name", ["cnn6", "panns_mobilenet_v1"])
def test_they_train(name):
    network = build_model(name, 3)
    audio = torch.randn(4, 16000)
    features = network(audio)
    assert not torch.equal(network(audio).embedding, features.embedding)  # SpecAugment and dropout
    (features.logits.square().mean() + features.tokens.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A cnn6 as the published ones are: PyTorch's old format, a sampler's arrays of an old NumPy beside the weights."""
    file = tmp_path_factory.mktemp("panns") / "Cnn6.pth"
    network = build_model("cnn6", 527)
    sampler = {"indexes_per_class": [np.arange(3), np.arange(2)], "queue": [np.int64(3)], "pointers": [0, 1]}
    held = {"iteration": 600000, "model": {**FRONT_END, **network.state_dict()}, "sampler": sampler}
    torch.save(held, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return file, network, held


def test_a_checkpoint_loads_by_name(checkpoint):
    file, network, _ = checkpoint
    again = build_model("cnn6", 527)
    load_panns(again, file)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_a_wrong_or_damaged_checkpoint_is_one_line(checkpoint, tmp_path):
    file, _, held = checkpoint
    model = held["model"]
    whole = file.read_bytes()
    files = {
        "missing": (None, "no such file"),
        "short": (whole[: len(whole) // 2], "found a damaged or other file"),
        "text": (b"hello", "found a damaged or other file"),
        "empty": (b"", "found a damaged or other file"),
        "plain": ({"a": torch.zeros(1)}, "with the key 'model', found a"),
        "list": ([1, 2], "with the key 'model', found list"),
        "less": ({"model": {k: v for k, v in model.items() if k != "fc1.bias"}}, "1 missing: fc1.bias"),
        "more": ({"model": {**model, "fc2.bias": torch.zeros(2)}}, "1 unexpected: fc2.bias"),
        "width": ({"model": {**model, "fc1.weight": torch.zeros(128, 512)}}, "expected 512 x 512, found 128 x 512"),
        "rate": ({"model": {**model, "logmel_extractor.melW": torch.zeros(257, 64)}}, "32000 Hz.*found 257 x 64"),
        "no name": ({"model": {**model, 3: torch.zeros(2)}}, "expected a tensor for 3, found"),
        "value": ({"model": {**model, "fc1.bias": 1.0}}, "expected a tensor for 'fc1.bias', found float"),
        "complex": ({"model": {**model, "fc1.bias": model["fc1.bias"] * 1j}}, "'fc1.bias', found torch.complex64"),
        "repeated": ({"model": {**model, "fc1.bias": torch.zeros(1).expand(512)}}, "the 512 values of its shape"),
        "mel": ({"model": {**model, "logmel_extractor.melW": torch.zeros(513, 64)}}, "mel filters are not those"),
    }
    for name, (content, message) in files.items():
        wrong = tmp_path / f"{name}.pth"
        if isinstance(content, bytes):
            wrong.write_bytes(content)
        elif content is not None:
            torch.save(content, wrong)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_panns(build_model("cnn6", 527), wrong)
        assert "\n" not in str(caught.value)
        assert str(wrong) in str(caught.value)


def test_code_inside_a_checkpoint_is_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (ran,))

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match="found a damaged or other file"):
        load_panns(build_model("cnn6", 527), tmp_path / "trap.pth")
    assert not ran.exists()


def test_a_download_is_logged_verified_and_kept(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    published = tmp_path / "published.pth"
    published.write_bytes(b"weights")
    wanted = Download("a.pth", published.as_uri(), "8b4b2da37b4c5ff1f3c2f0d6e36a8b4e")
    with pytest.raises(CheckpointError, match="expected MD5 8b4b2da37b4c5ff1f3c2f0d6e36a8b4e, found") as caught:
        fetch(wanted)
    assert not list((tmp_path / "cache" / "avdistill").iterdir())
    right = Download("a.pth", published.as_uri(), str(caught.value).split("found ")[1].split(";")[0])
    caplog.clear()
    file = fetch(right)
    assert file.read_bytes() == b"weights"
    assert published.as_uri() in caplog.text
    caplog.clear()
    published.unlink()
    assert fetch(right) == file
    assert not caplog.text
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        fetch(right)
    assert not list((tmp_path / "cache" / "avdistill").iterdir())
