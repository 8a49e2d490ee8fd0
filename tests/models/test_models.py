"""Networks: shapes, order of tokens, sizes, weights on disk, and the filter on short batches."""

import copy
import json
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn

from avdistill.errors import CheckpointError, ConfigError
from avdistill.inputs import AudioInput, VideoInput, normalize_frames
from avdistill.models import efficientnet_lite
from avdistill.models.checkpoint import load_student, save_student
from avdistill.models.logmel_cnn import LogMel, mel_filters
from avdistill.models.noise_filter import NoiseFilter
from avdistill.models.r2plus1d import _FactoredConv, r2plus1d_xia2023
from avdistill.models.registry import MODELS, build_model
from avdistill.types import StudentConfig

INPUTS = {
    "cnn6": (2, 16000),
    "cnn10": (2, 16000),
    "logmel_cnn": (2, 8000),
    "panns_mobilenet_v1": (2, 16000),
    "yamnet": (2, 16000),
    "stacked_frames": (2, 3, 16, 24, 32),
    "torchvision:mvit_v1_b": (1, 3, 16, 224, 224),
    "torchvision:mvit_v2_s": (1, 3, 16, 224, 224),
}
LARGE = {"torchvision:mvit_v1_b", "torchvision:swin3d_s", "torchvision:swin3d_b", "torchvision:mvit_v2_s"}
LARGE |= {"cnn14", "cnn14_emb512", "cnn14_emb128", "cnn14_emb32"}  # tests/models/test_panns.py
# The embedding is not the mean of the tokens: there is a normalisation or a fully connected layer between them.
PROJECTED = ("torchvision", "cnn6", "cnn10", "panns")


@pytest.mark.parametrize("name", sorted(set(MODELS) - LARGE))
def test_every_network_returns_features_with_tokens(name):
    network = build_model(name, 5).eval()
    inputs = torch.randn(INPUTS.get(name, (2, 3, 8, 32, 32)))
    with torch.no_grad():
        features = network(inputs)
    B, D = len(inputs), network.embedding_dim
    assert features.embedding.shape == (B, D)
    assert features.logits.shape == (B, 5)
    assert features.tokens.shape[0] == B
    assert features.tokens.shape[2] == D
    assert network.modality in ("video", "audio")
    assert torch.float64 not in {values.dtype for values in (*network.parameters(), *network.buffers())}  # MPS has none
    if not name.startswith(PROJECTED):
        torch.testing.assert_close(features.tokens.mean(1), features.embedding)


@pytest.mark.parametrize("name", ["logmel_cnn", "cnn10", "yamnet", "shifted_frames"])
def test_convolutions_are_channels_last_from_the_first_on(name):
    """Also of a spectrogram's one channel, where the layout does not show in the order of the values."""
    convolutions = [module for module in build_model(name, 5).modules() if isinstance(module, nn.Conv2d)]
    assert all(each.weight.stride()[1] == 1 for each in convolutions)


def test_sizes():
    def millions(network):
        return sum(p.numel() for p in network.parameters()) / 1e6

    assert millions(r2plus1d_xia2023(51)) == pytest.approx(14.39, abs=0.005)
    assert millions(build_model("tiny_r2plus1d", 51)) < 1
    assert millions(build_model("shifted_frames", 51)) < 1
    assert millions(build_model("stacked_frames", 51)) < 1
    assert millions(build_model("logmel_cnn", 51)) < 1
    assert r2plus1d_xia2023(51, depth=34).conv3.blocks[2].conv1.spatial_conv.in_channels == 128
    with pytest.raises(ValueError, match="18 or 34"):
        r2plus1d_xia2023(51, depth=50)


def test_tokens_run_through_time_then_height_then_width():
    torch.manual_seed(1)  # of some weights the neighbor on the right changes a little more
    network = build_model("tiny_r2plus1d", 3).eval()
    with torch.no_grad():
        plain = network(torch.zeros(1, 3, 16, 64, 96)).tokens
        inputs = torch.zeros(1, 3, 16, 64, 96)
        inputs[:, :, :, -8:, :8] = 5.0  # bottom left, at all times
        changed = (network(inputs).tokens - plain).norm(dim=-1)[0].unflatten(0, (2, 4, 6))
    assert changed.sum(0).argmax() == 3 * 6 + 0


def test_frames_are_normalized_as_imagenet_was():
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    video = normalize_frames(frames)
    assert video.shape == (2, 3, 3, 4, 5)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (frames.numpy() / 255.0 - mean) / std
    np.testing.assert_allclose(video.permute(0, 2, 3, 4, 1).numpy(), expected, atol=1e-5)


def test_stacked_frames_takes_its_number_only():
    with pytest.raises(ValueError, match="expected 16 frames, found 8"):
        build_model("stacked_frames", 3)(torch.zeros(1, 3, 8, 24, 24))


def test_shifted_frames_see_the_order_of_frames():
    network = build_model("shifted_frames", 3).eval()
    video = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        forwards, backwards = network(video).embedding, network(video.flip(2)).embedding
    assert (forwards - backwards).abs().max() > 1e-4


def test_mel_filters_are_triangles_on_the_mel_scale():
    filters = mel_filters(bands=10, bins=257, sample_rate_hz=16000, low_hz=60, high_hz=8000).numpy()
    frequencies = np.linspace(0, 8000, 257)
    edges = 700 * (10 ** (np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 8000 / 700), 12) / 2595) - 1)
    for band in range(10):
        expected = np.interp(frequencies, edges[band : band + 3], [0, 1, 0], left=0, right=0)
        np.testing.assert_allclose(filters[:, band], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["logmel_cnn", "cnn6", "yamnet"])
def test_constants_are_on_the_cpu_where_parameters_are_counted_without_memory(name):
    with torch.device("meta"):
        counted = MODELS[name](num_classes=3)
    built = build_model(name, 3)
    constants = {key: value for key, value in counted.named_buffers() if value.device.type == "cpu"}
    assert {key.rsplit(".", 1)[-1] for key in constants} == {"filters", "window"}
    assert all(torch.equal(value, built.get_buffer(key)) for key, value in constants.items())
    assert all(parameter.is_meta for parameter in counted.parameters())


def test_log_mel_of_a_tone_peaks_at_its_band_and_short_audio_is_repeated():
    front = LogMel(16000, 64)
    time = torch.arange(16000) / 16000
    spectrogram = front(torch.sin(2 * torch.pi * 1000 * time)[None])
    assert spectrogram.shape == (1, 101, 64)
    band = int(spectrogram[0, 50].argmax())
    center = 700 * (10 ** (np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 8000 / 700), 66) / 2595) - 1)
    assert abs(center[band + 1] - 1000) < 60
    assert build_model("logmel_cnn", 3)(torch.zeros(2, 100)).embedding.shape == (2, 128)


def test_spec_augment_acts_in_training_only():
    network = build_model("logmel_cnn", 3)
    audio = torch.randn(2, 8000)
    network.eval()
    assert torch.equal(network(audio).embedding, network(audio).embedding)
    network.train()
    assert not torch.equal(network(audio).embedding, network(audio).embedding)


def test_the_position_in_time_is_an_input_of_its_own():
    network = build_model("logmel_cnn", 3, {"time_position": True}).eval()
    seen = []
    network.blocks[0].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    plain = build_model("logmel_cnn", 3).eval()
    plain.blocks[0].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    audio = torch.randn(2, 8000)
    network(audio)
    plain(audio)
    with_position, without = seen
    frames = with_position.shape[2]
    torch.testing.assert_close(with_position[:, :1], without)
    expected = torch.tensor([2 * i / (frames - 1) - 1 for i in range(frames)])
    torch.testing.assert_close(with_position[:, 1], expected[None, :, None].expand(2, frames, 64))


def test_the_filter_uses_running_statistics_for_a_single_row():
    noise_filter = NoiseFilter(8, 3)
    tokens, teacher = torch.rand(4, 5, 8), torch.rand(4, 8)
    noise_filter(teacher=teacher, tokens=tokens)  # moves the statistics away from their start
    before = {k: v.clone() for k, v in noise_filter.named_buffers()}
    alone = noise_filter(teacher=teacher[:1], tokens=tokens[:1])
    assert all(torch.equal(v, before[k]) for k, v in noise_filter.named_buffers())
    expected = noise_filter.eval()(teacher=teacher[:1], tokens=tokens[:1])
    torch.testing.assert_close(alone.guided, expected.guided)
    torch.testing.assert_close(alone.gate, expected.gate)


def test_filter_output_is_what_its_fields_say():
    noise_filter = NoiseFilter(8, 3, teacher_dim=5)
    out = noise_filter(teacher=torch.rand(4, 5), tokens=torch.rand(4, 6, 8))
    assert out.teacher.shape == out.embedding.shape == out.guided.shape == out.gate.shape == (4, 8)
    torch.testing.assert_close(out.embedding, out.gate * out.teacher)
    assert (out.teacher >= 0).all()  # so that no cosine with a student behind a ReLU is negative
    torch.testing.assert_close(out.attention.sum(1), torch.ones(4))
    assert out.attention.shape == (4, 6)
    assert (out.guided >= 0).all()


def test_parts_of_the_filter_can_be_left_out():
    teacher, tokens = torch.rand(4, 8), torch.rand(4, 6, 8)
    bare = NoiseFilter(8, 3, gate="open", attention="mean")
    out = bare(teacher=teacher, tokens=tokens)
    assert torch.equal(out.embedding, teacher)
    torch.testing.assert_close(out.attention, torch.full((4, 6), 1 / 6))
    torch.testing.assert_close(out.guided, bare.guide(tokens.mean(1)))
    # What the teacher says then reaches neither the gate nor what is looked at.
    assert torch.equal(out.logits, bare(teacher=1 - teacher, tokens=tokens).logits)
    assert {name.split(".")[0] for name, _ in bare.named_parameters()} == {"guide", "classifier"}
    open_gate = NoiseFilter(8, 3, gate="open")(teacher=teacher, tokens=tokens)
    assert torch.equal(open_gate.embedding, teacher)
    assert not torch.allclose(open_gate.attention, torch.full((4, 6), 1 / 6), atol=1e-4)


def test_weights_on_disk_build_the_same_network(tmp_path):
    network = build_model("shifted_frames", 3, {"width": 8}).eval()
    description = StudentConfig(
        "shifted_frames", ("a", "b", "c"), VideoInput(frames=8, size=(32, 32)), 8.0, 16000, options={"width": 8}
    )
    save_student(tmp_path, network, description)
    again, told = load_student(tmp_path)
    assert told == description
    video = torch.randn(1, 3, 8, 32, 32)
    assert torch.equal(network(video).logits, again(video).logits)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_weights_are_written_with_the_mode_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_student(
            tmp_path, build_model("logmel_cnn", 2), StudentConfig("logmel_cnn", ("a", "b"), AudioInput(), None, 16000)
        )
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o666 & ~umask}


def test_weights_that_do_not_fit_say_so_in_a_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        load_student(tmp_path)
    description = StudentConfig("logmel_cnn", ("a", "b"), AudioInput(), None, 16000)
    save_student(tmp_path, build_model("logmel_cnn", 2), description)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_student(tmp_path)
    file.write_bytes(whole)
    told = json.loads((tmp_path / "config.json").read_text())
    for changes, message in (
        ({"classes": ["a", "b", "c"]}, "size mismatch"),
        ({"model": "resnet"}, "unknown model 'resnet'"),
        ({"options": {"depth": 3}}, "depth"),
        ({"color": 1}, "color"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(told | changes))
        with pytest.raises(CheckpointError, match=message) as caught:
            load_student(tmp_path)
        assert "\n" not in str(caught.value)


def test_options_are_checked_before_the_network_is_built(monkeypatch):
    for name, options, message in (
        (
            "logmel_cnn",
            {"depth": 3},
            "model 'logmel_cnn': unknown option 'depth'; known: embedding_dim, sample_rate_hz",
        ),
        ("logmel_cnn", {"width": "8"}, "model 'logmel_cnn': width: expected int, got '8'"),
        ("cnn14_emb32", {"embedding_dim": 64}, "model 'cnn14_emb32': unknown option 'embedding_dim'"),
        ("torchvision:s3d", {"network": "r3d_18"}, "unknown option 'network'; known: pretrained"),
        ("yamnet", {"width": 8}, "unknown option 'width'; known: none"),
        ("r2plus1d_xia2023", {"depth": 50}, "model 'r2plus1d_xia2023': depth: expected 18 or 34, found 50"),
    ):
        with pytest.raises(ConfigError, match=f"^{message}" if message.startswith("model") else message):
            build_model(name, 3, options)

    def broken(num_classes, width=1):
        return num_classes + None

    monkeypatch.setitem(MODELS, "broken", broken)
    with pytest.raises(TypeError, match="unsupported operand"):
        build_model("broken", 3, {"width": "any"})


def test_two_dimensional_kernels_lie_channels_last():
    network = build_model("stacked_frames", 3)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1:
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_that_training_began_with_are_not_downloaded_again(tmp_path, monkeypatch):
    network = build_model("torchvision:mc3_18", 2)
    options = {"pretrained": True}
    view = VideoInput(frames=4, size=(32, 32))
    save_student(tmp_path, network, StudentConfig("torchvision:mc3_18", ("a", "b"), view, 8.0, 16000, options=options))

    def refuse(*_args, **_kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    again, told = load_student(tmp_path)
    assert told.options == options
    assert torch.equal(again.classifier.weight, network.classifier.weight)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copied_network_keeps_its_own_map(copied):
    network = build_model("torchvision:mc3_18", 2).eval()
    other = copied(network)
    video = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
        seen, by_other = network(video), other(video)
    assert seen.tokens.shape == by_other.tokens.shape == (1, 4 * 2 * 2, 512)
    assert not torch.equal(seen.tokens, by_other.tokens)


def test_a_factored_convolution_is_its_two_in_turn():
    """Whatever is stepped over before a kernel of 1, and however time and video are folded into the batch."""
    torch.manual_seed(0)
    for kernel, stride in (((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((3, 7, 7), (1, 2, 2))):
        folded = _FactoredConv(4, 6, kernel, stride).double()
        video = torch.randn(2, 4, 5, 9, 7, dtype=torch.float64, requires_grad=True)
        literal = folded.temporal_conv(folded.relu(folded.bn(folded.spatial_conv(video))))
        found = folded(video.contiguous(memory_format=torch.channels_last_3d))
        assert torch.allclose(found, literal, rtol=0, atol=1e-12)
        parts = [video, *folded.parameters()]
        pull = torch.randn_like(literal)
        for a, b in zip(
            torch.autograd.grad(found, parts, pull), torch.autograd.grad(literal, parts, pull), strict=True
        ):
            assert torch.allclose(a, b, rtol=0, atol=1e-10)


# Where a kernel of 1 stepped over positions of few channels, oneDNN wrote beyond its memory: sizes that killed.
TRAINED = [
    ("tiny_r2plus1d", {}, (6, 3, 16, 64, 64)),  # of the recipes tiny_*
    ("shifted_frames", {"width": 8}, (4, 3, 8, 112, 112)),
    ("stacked_frames", {"width": 8, "frames": 8}, (16, 3, 8, 112, 112)),
]


@pytest.mark.parametrize(("name", "options", "shape"), TRAINED)
def test_small_networks_are_trained_at_large_sizes(name, options, shape, warm_python):
    """In a process of its own, which is killed if it happens again."""
    program = (
        "import torch; from avdistill.models.registry import build_model; "
        f"build_model({name!r}, 3, {options!r})(torch.randn({shape!r})).logits.sum().backward(); print('trained')"
    )
    done = warm_python.run([sys.executable, "-c", program], text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "trained"), done.stderr


@pytest.mark.parametrize("training", [False, True])
def test_chunks_give_what_the_whole_batch_gives(training, monkeypatch):
    """Features, gradients and the statistics of what is trained."""
    torch.manual_seed(0)
    whole = build_model("efficientnet_lite0", 3, {"frozen_blocks": 8}).train(training)
    frames, results = torch.randn(3, 3, 2, 40, 64), []
    for pixels in (1 << 30, 1 << 12, 1):
        monkeypatch.setattr(efficientnet_lite, "_CHUNK_PIXELS", pixels)
        student = copy.deepcopy(whole)
        features = student(frames)
        features.logits.square().sum().backward()
        gradients = {name: p.grad for name, p in student.named_parameters() if p.requires_grad}
        results.append(vars(features) | gradients | student.state_dict())
    assert any("_blocks.8" in name for name in gradients)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-5)


def test_frozen_blocks_keep_weights_and_statistics():
    torch.manual_seed(0)
    student = build_model("efficientnet_lite0", 3, {"frozen_blocks": 15}).train()
    before = copy.deepcopy(student.state_dict())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    features = student(torch.randn(2, 3, 2, 32, 32))
    (features.logits.square().sum() + features.embedding.sum()).backward()
    optimizer.step()
    moved = {key for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
    network = "frames_mean.network."
    assert not any(key.startswith((f"{network}_conv_stem", f"{network}_bn0")) for key in moved)
    blocks = {int(key.removeprefix(f"{network}_blocks.").split(".")[0]) for key in moved if "_blocks." in key}
    assert blocks == {15}
    assert {f"{network}_bn1.running_mean", f"{network}_conv_head.weight", "classifier.weight"} <= moved
    whole = build_model("efficientnet_lite0", 3)
    whole.load_state_dict(before)
    frames = torch.randn(1, 3, 2, 32, 32)
    student.load_state_dict(before)
    assert torch.equal(student.eval()(frames).logits, whole.eval()(frames).logits)
    for wrong in (-1, 17):
        with pytest.raises(ConfigError, match=f"frozen_blocks: expected 0 to 16, found {wrong}"):
            build_model("efficientnet_lite0", 3, {"frozen_blocks": wrong})
