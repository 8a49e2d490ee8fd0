"""timm's networks as students and teachers: what timm itself computes, and what is said where it cannot be had."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file

from avdistill.cli import main
from avdistill.errors import CheckpointError, ConfigError, TeacherError
from avdistill.inputs import IMAGENET_MEAN, IMAGENET_STD, VideoInput
from avdistill.models.checkpoint import load_student, save_student
from avdistill.models.registry import build_model
from avdistill.teachers.registry import load_teacher
from avdistill.types import StudentConfig

timm = pytest.importorskip("timm", reason="timm is not installed")

# A network of convolutions, one whose mean a layer widens, and a transformer with another normalization.
NETWORKS = ("resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224")


def video(frames=2, side=64):
    return torch.randn(2, 3, frames, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_embeddings_are_means_of_timms_over_the_frames(name):
    network, inputs = build_model(f"timm:{name}", 3).eval(), video()
    theirs = timm.create_model(
        name, pretrained=False, num_classes=0, **({"dynamic_img_size": True} if "vit" in name else {})
    )
    theirs.load_state_dict(network.frames_mean.network.network.state_dict())
    config = theirs.eval().pretrained_cfg
    rgb = inputs * torch.tensor(IMAGENET_STD)[:, None, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None, None]
    rgb = (rgb - torch.tensor(config["mean"])[:, None, None, None]) / torch.tensor(config["std"])[:, None, None, None]
    with torch.no_grad():
        features = network(inputs)
        expected = torch.stack([theirs(rgb[:, :, t]) for t in range(2)]).mean(0)
    torch.testing.assert_close(features.embedding, expected, rtol=1e-4, atol=1e-5)
    assert features.logits.shape == (2, 3)
    assert features.tokens.shape[::2] == (2, network.embedding_dim)
    if name != "vit_tiny_patch16_224":  # whose embedding is the class token
        torch.testing.assert_close(features.tokens.mean(1), expected, rtol=1e-4, atol=1e-5)


def test_a_shift_lets_frames_see_each_other():
    plain, shifted = build_model("timm:resnet10t", 3).eval(), build_model("timm:resnet10t", 3, {"shift": True}).eval()
    shifted.load_state_dict(plain.state_dict())
    inputs = video(frames=3)
    turned = inputs.flip(2)
    with torch.no_grad():
        torch.testing.assert_close(plain(inputs).embedding, plain(turned).embedding, rtol=1e-4, atol=1e-5)
        difference = (shifted(inputs).embedding - shifted(turned).embedding).abs().max()
        copies = [copy.deepcopy(shifted), pickle.loads(pickle.dumps(shifted))]
        assert all(torch.equal(each(inputs).embedding, shifted(inputs).embedding) for each in copies)
    assert difference > 1e-3
    with pytest.raises(ConfigError, match="expected a network of convolutions"):
        build_model("timm:vit_tiny_patch16_224", 3, {"shift": True})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_file_start_a_student_and_make_a_teacher(tmp_path, suffix):
    torch.manual_seed(3)
    published = timm.create_model("mobilenetv3_small_050", pretrained=False)  # with its classifier of 1000 classes
    file = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(published.state_dict(), file)
    student = build_model("timm:mobilenetv3_small_050", 2, {"weights": str(file)})
    teacher = load_teacher("timm:mobilenetv3_small_050", weights=file)
    assert teacher.view == VideoInput(frames=8, size=(224, 224))
    assert len(teacher.provenance["weights_sha256"]) == 64
    for network in (student.frames_mean, teacher.network):
        found = network.network.network.state_dict()
        assert all(torch.equal(value, published.state_dict()[key]) for key, value in found.items())
    view = VideoInput(frames=2, size=(64, 64))
    options = {"weights": str(file), "shift": False}
    save_student(
        tmp_path, student, StudentConfig("timm:mobilenetv3_small_050", ("a", "b"), view, 8.0, 16000, options=options)
    )
    file.unlink()
    again, _ = load_student(tmp_path)  # the weights to start from are needed no more
    assert torch.equal(again.classifier.weight, student.classifier.weight)
    with pytest.raises(CheckpointError, match="No such file"):
        load_teacher("timm:mobilenetv3_small_050", weights=file)


def test_what_cannot_be_had_is_said(monkeypatch, tmp_path, taught, capsys):
    with pytest.raises(ConfigError, match="model 'timm:resnet1': expected a name of timm's, such as "):
        build_model("timm:resnet1", 2)
    with pytest.raises(TeacherError, match="expected --weights download"):
        load_teacher("timm:resnet18")
    with pytest.raises(TeacherError, match="expected a name of timm's"):
        load_teacher("timm:nothing_at_all", weights="download")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at its import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TeacherError, match=r"timm/resnet18.a1_in1k cannot be had"):
        load_teacher("timm:resnet18", weights="download")
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    assert main(["embed", str(taught.folder), "--teacher", "timm:resnet18", "--weights", "download"]) == 1
    assert "expected the package timm" in capsys.readouterr().err
