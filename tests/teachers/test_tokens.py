"""Teachers' maps: from `embed --tokens` into the dataset, from there to methods that look at them; and their
absence.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avdistill.cli import main
from avdistill.dataset.batches import TrainingBatches
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_split, encode_labels
from avdistill.errors import DatasetError, RunError, TeacherError
from avdistill.inputs import AudioInput, VideoInput
from avdistill.methods.attention_transfer import ATConfig
from avdistill.methods.fitnet import FitNetConfig
from avdistill.methods.neuron_selectivity import NSTConfig
from avdistill.models.checkpoint import save_student
from avdistill.models.efficientnet_lite import EfficientNetLite0
from avdistill.models.registry import build_model
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import TEACHERS, load_teacher
from avdistill.training import ModelConfig, OptimizerConfig, TrainConfig, train
from avdistill.types import Features, Network, StudentConfig
from support.features import feature_arrays, part_files

RATE = 16000
WINDOW = RATE // 4
STUDENT = ModelConfig("shifted_frames", VideoInput(frames=4, size=(24, 32)), {"width": 8, "embedding_dim": 16})


def save_ears(folder: Path, classes: tuple[str, ...]) -> Path:
    """The folder of a network that hears, 12 channels wide, with random weights."""
    options = {"width": 4, "embedding_dim": 12}
    torch.manual_seed(3)
    network = build_model("logmel_cnn", len(classes), options)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics under which the map is neither flat nor dead
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.1, 0.2)
    folder.mkdir()
    view = AudioInput(seconds=WINDOW / RATE)
    save_student(folder, network, StudentConfig("logmel_cnn", classes, view, None, RATE, options=options))
    return folder


@pytest.fixture(scope="module")
def ears(prepared, tmp_path_factory) -> Path:
    return save_ears(tmp_path_factory.mktemp("run") / "ears", ClipDataset(prepared).classes)


@pytest.fixture(scope="module")
def mapped(prepared, ears, tmp_path_factory) -> ClipDataset:
    """A dataset with the teacher "maps", which has them, and "plain", the same without. Tests must not write into
    it.
    """
    out = tmp_path_factory.mktemp("mapped") / "dataset"
    shutil.copytree(prepared, out)
    embed(ClipDataset(out), load_teacher(ears), "maps", tokens=True, batch_size=5)
    embed(ClipDataset(out), load_teacher(ears), "plain", batch_size=5)
    return ClipDataset(out)


class Faceless(Network):
    """A network that hears and has no map."""

    modality, embedding_dim = "audio", 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> Features:
        return Features(embedding=self.scale * inputs.mean(1, keepdim=True))


def windows(audio: np.ndarray) -> list[np.ndarray]:
    """One after the other; the last one ends where the audio ends."""
    starts = list(range(0, len(audio) - WINDOW + 1, WINDOW))
    if starts[-1] + WINDOW < len(audio):
        starts.append(len(audio) - WINDOW)
    return [audio[start : start + WINDOW] for start in starts]


def test_embed_windows_takes_that_many_evenly_spaced_ones(prepared, ears, tmp_path, capsys):
    """With three: the first, the middle and the last window of the clip."""
    out = shutil.copytree(prepared, tmp_path / "dataset")
    assert main(["embed", str(out), "--teacher", str(ears), "--name", "few", "--windows", "3"]) == 0
    dataset, network = ClipDataset(out), load_teacher(ears).network
    assert dataset.teachers["few"].provenance["windows"] == 3
    clip = int(np.flatnonzero(dataset.features("few").valid)[0])
    audio = torch.from_numpy(dataset.audio(clip) / np.float32(32767))
    last = len(audio) - WINDOW
    assert last > 2 * WINDOW
    inputs = torch.stack([audio[start : start + WINDOW] for start in (0, last // 2, last)])
    with torch.no_grad():
        expected = network(inputs).embedding.mean(0)
    np.testing.assert_allclose(dataset.features("few").embedding[clip], expected, atol=1e-5)
    assert main(["embed", str(out), "--teacher", str(ears), "--name", "none", "--windows", "0"]) == 2


def test_maps_are_the_mean_over_the_windows_position_by_position(mapped, ears):
    network = load_teacher(ears).network
    entry, tokens = mapped.teachers["maps"], mapped.features("maps").tokens
    assert tokens.dtype == np.float32
    assert tokens.shape == (len(mapped), entry.num_tokens, entry.embedding_dim)
    assert entry.embedding_dim == 12
    _, _, present = feature_arrays(mapped, "maps")
    assert 0 < present.sum() < len(mapped)
    assert not tokens[~present].any()
    for clip in np.flatnonzero(present)[:4]:
        maps = []
        for window in windows(mapped.audio(clip).astype(np.float64) / 32767):
            with torch.no_grad():
                maps.append(network(torch.from_numpy(window).float()[None]).tokens[0].numpy())
        assert len(maps) > 2
        np.testing.assert_allclose(tokens[clip], sum(maps) / len(maps), atol=1e-5)
        assert tokens[clip].std(0).max() > 1e-3  # a map that differs from position to position


def test_maps_change_nothing_else(mapped):
    for with_maps, without in zip(feature_arrays(mapped, "maps"), feature_arrays(mapped, "plain"), strict=True):
        np.testing.assert_array_equal(with_maps, without)
    assert mapped.teachers["plain"].num_tokens == 0
    assert mapped.features("plain").tokens is None
    assert mapped.verify() == []
    assert part_files(mapped, "maps", "tokens")[0].is_file()
    embedding, _, present = feature_arrays(mapped, "maps")  # of this network the mean of its map
    np.testing.assert_allclose(mapped.features("maps").tokens[present].mean(1), embedding[present], atol=1e-5)


def test_a_batch_holds_the_maps_of_its_clips(mapped):
    clips = clips_of_split(mapped, "train")
    batch = TrainingBatches(
        mapped,
        clips,
        encode_labels(mapped, clips, mapped.classes),
        STUDENT.view,
        batch_size=6,
        labeled_per_batch=None,
        use_unlabeled=True,
        teacher=mapped.features("maps"),
        seed=0,
    )[0]
    ids = mapped.columns["id"].tolist()
    rows = [ids.index(name) for name in batch.clip_ids]
    np.testing.assert_array_equal(batch.teacher.tokens.numpy(), mapped.features("maps").tokens[rows])


def config(dataset: ClipDataset, out: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        dataset=dataset.folder,
        out=out,
        student=STUDENT,
        teacher="maps",
        steps=2,
        batch_size=6,
        val_fraction=0.3,
        optimizer=OptimizerConfig("adamw", 1e-3),
        log_every=1,
    )
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("method", "term", "workers"), [(ATConfig(), "attention", 0), (NSTConfig(), "selectivity", 1)], ids=["at", "nst"]
)
def test_methods_that_look_at_maps_train(mapped, tmp_path, method, term, workers):
    run = train(config(mapped, tmp_path / "run", method=method, workers=workers))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line["losses"][term] for line in lines if "losses" in line]
    assert len(found) == 2
    assert all(np.isfinite(value) and value > 0 for value in found)


def test_a_dataset_without_maps_is_told_in_one_line(mapped, tmp_path):
    with pytest.raises(RunError, match=r"^method 'at' needs the teacher's tokens, .*'plain' .*with tokens: maps; "):
        train(config(mapped, tmp_path / "run", method=ATConfig(), teacher="plain"))
    with pytest.raises(DatasetError, match="no teacher 'nobody' in this dataset"):
        mapped.features("nobody")
    train(config(mapped, tmp_path / "other", method=FitNetConfig(), teacher="plain", steps=1))


def test_a_teacher_without_a_map_is_told_in_one_line(prepared, ears, tmp_path):
    dataset = ClipDataset(shutil.copytree(prepared, tmp_path / "dataset"))
    teacher = replace(load_teacher(ears), network=Faceless(), classes=(), provenance={"name": "a faceless network"})
    files = sorted(file for file in dataset.folder.rglob("*") if file.name != "lock" and file.is_file())
    message = "^teacher 'it': expected a network with a feature map for --tokens, found none in a faceless network$"
    with pytest.raises(TeacherError, match=message):
        embed(dataset, teacher, "it", tokens=True)
    assert sorted(file for file in dataset.folder.rglob("*") if file.name != "lock" and file.is_file()) == files
    assert ClipDataset(dataset.folder).teachers == {}
    assert embed(dataset, teacher, "it").num_tokens == 0


def test_features_without_maps_replace_those_with(mapped, ears, tmp_path):
    dataset = ClipDataset(shutil.copytree(mapped.folder, tmp_path / "dataset"))
    file = part_files(dataset, "maps", "tokens")[0]
    assert file.is_file()
    embed(dataset, load_teacher(ears), "maps")
    dataset = ClipDataset(dataset.folder)
    assert not file.exists()
    assert dataset.teachers["maps"].num_tokens == 0
    assert dataset.features("maps").tokens is None
    assert dataset.verify() == []
    embed(dataset, load_teacher(ears), "maps", tokens=True)
    np.testing.assert_array_equal(ClipDataset(dataset.folder).features("maps").tokens, mapped.features("maps").tokens)


def test_the_command_and_a_teacher_of_other_classes(prepared, tmp_path, capsys):
    """Its logits are those of a fitted head, its maps its own."""
    dataset = shutil.copytree(prepared, tmp_path / "dataset")
    strange = save_ears(tmp_path / "strange", ("bark", "hum"))
    assert main(["embed", str(dataset), "--teacher", str(strange), "--tokens", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fitted_head"]
    assert report["num_tokens"] == ClipDataset(dataset).features("audio").tokens.shape[1] > 1


def test_maps_need_a_row_for_every_clip(mapped, tmp_path):
    dataset = ClipDataset(shutil.copytree(mapped.folder, tmp_path / "dataset"))
    rows = np.zeros((len(dataset), 4), np.float32)
    with pytest.raises(DatasetError, match=f"teacher 'x': 3 rows for {len(dataset)} clips"):
        dataset.add_features(
            "x",
            modality="audio",
            provenance={"name": ""},
            embedding=rows,
            logits=None,
            classes=(),
            tokens=np.zeros((3, 2, 4)),
        )


# The other names are the first one's class with more or wider layers, and take seconds to build.
OF_ONE_CLASS = ("cnn6", "cnn10", "cnn14", "cnn14_emb512", "cnn14_emb128", "cnn14_emb32")


@pytest.mark.parametrize("name", sorted(set(TEACHERS) - set(OF_ONE_CLASS[1:])))
def test_every_teacher_by_name_has_maps(name, tmp_path):
    """docs/teachers.md says so."""
    weights = Path("random")
    if name == "efficientnet_lite0":
        weights = tmp_path / "lite0.pth"
        torch.save(EfficientNetLite0().state_dict(), weights)
    teacher = load_teacher(name, weights=weights)
    inputs = torch.zeros(1, 3, 2, 64, 64) if teacher.view.modality == "video" else torch.zeros(1, 32000)
    with torch.inference_mode():
        features = teacher.network.eval()(inputs)
    assert features.tokens is not None
    assert features.tokens.shape[1] > 1
    assert features.tokens.shape[2] == TEACHERS[name].embedding_dim
