"""Teachers' maps: from `embed --maps` into the store, from there to methods that look at them; and their absence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avdistill.cli import main
from avdistill.data.dataset import TrainingBatches, clips_of_split, encode_labels
from avdistill.data.store import Store, StoreError
from avdistill.methods import ATConfig, FitNetConfig, NSTConfig
from avdistill.models import build_model
from avdistill.models.efficientnet_lite import EfficientNetLite0
from avdistill.models.weights import save_student
from avdistill.teachers import TEACHERS, TeacherError, embed, load_teacher
from avdistill.training import OptimizerConfig, StudentConfig, TrainConfig, train
from avdistill.training.checkpoint import RunError
from avdistill.types import Features, Network, PictureView, SoundView, StudentDescription

RATE = 16000
WINDOW = RATE // 4
STUDENT = StudentConfig("shifted_frames", PictureView(frames=4, size=(24, 32)), {"width": 8, "embedding_dim": 16})


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
    view = SoundView(seconds=WINDOW / RATE)
    save_student(folder, network, StudentDescription("logmel_cnn", classes, view, None, RATE, options=options))
    return folder


@pytest.fixture(scope="module")
def ears(prepared, tmp_path_factory) -> Path:
    return save_ears(tmp_path_factory.mktemp("run") / "ears", Store(prepared).classes)


@pytest.fixture(scope="module")
def mapped(prepared, ears, tmp_path_factory) -> Store:
    """A store with the teacher "maps", which has them, and "plain", the same without. Tests must not write into it."""
    out = tmp_path_factory.mktemp("mapped") / "store"
    shutil.copytree(prepared, out)
    embed(Store(out), load_teacher(ears), "maps", maps=True, batch_size=5)
    embed(Store(out), load_teacher(ears), "plain", batch_size=5)
    return Store(out)


class Faceless(Network):
    """A network that hears and has no map."""

    modality, embedding_dim = "sound", 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> Features:
        return Features(embedding=self.scale * inputs.mean(1, keepdim=True))


def windows(sound: np.ndarray) -> list[np.ndarray]:
    """One after the other; the last one ends where the sound ends."""
    starts = list(range(0, len(sound) - WINDOW + 1, WINDOW))
    if starts[-1] + WINDOW < len(sound):
        starts.append(len(sound) - WINDOW)
    return [sound[start : start + WINDOW] for start in starts]


def test_maps_are_the_mean_over_the_windows_position_by_position(mapped, ears):
    network = load_teacher(ears).network
    entry, tokens = mapped.teachers["maps"], mapped.teacher_tokens("maps")
    assert tokens.dtype == np.float32
    assert tokens.shape == (len(mapped), entry.positions, entry.width)
    assert entry.width == 12
    _, _, present = mapped.teacher_features("maps")
    assert 0 < present.sum() < len(mapped)
    assert not tokens[~present].any()
    for clip in np.flatnonzero(present)[:4]:
        maps = []
        for window in windows(mapped.sound(clip).astype(np.float64) / 32767):
            with torch.no_grad():
                maps.append(network(torch.from_numpy(window).float()[None]).tokens[0].numpy())
        assert len(maps) > 2
        np.testing.assert_allclose(tokens[clip], sum(maps) / len(maps), atol=1e-5)
        assert tokens[clip].std(0).max() > 1e-3  # a map that differs from position to position


def test_maps_change_nothing_else(mapped):
    for with_maps, without in zip(mapped.teacher_features("maps"), mapped.teacher_features("plain"), strict=True):
        np.testing.assert_array_equal(with_maps, without)
    assert mapped.teachers["plain"].positions == 0
    assert mapped.teacher_tokens("plain") is None
    assert mapped.verify() == []
    assert "teacher-maps-tokens.npy" in json.loads((mapped.folder / "store.json").read_text())["files"]
    embedding, _, present = mapped.teacher_features("maps")  # of this network the mean of its map
    np.testing.assert_allclose(mapped.teacher_tokens("maps")[present].mean(1), embedding[present], atol=1e-5)


def test_a_batch_holds_the_maps_of_its_clips(mapped):
    clips = clips_of_split(mapped, "train")
    batch = TrainingBatches(
        mapped,
        clips,
        encode_labels(mapped, clips, mapped.classes),
        STUDENT.view,
        batch_size=6,
        labelled_per_batch=None,
        use_unlabelled=True,
        teacher=mapped.teacher_features("maps"),
        teacher_tokens=mapped.teacher_tokens("maps"),
        seed=0,
    )[0]
    ids = mapped.columns["id"].tolist()
    rows = [ids.index(name) for name in batch.clip_ids]
    np.testing.assert_array_equal(batch.teacher.tokens.numpy(), mapped.teacher_tokens("maps")[rows])


def config(store: Store, out: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        store=store.folder,
        out=out,
        student=STUDENT,
        teacher="maps",
        steps=2,
        batch_size=6,
        validation_fraction=0.3,
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


def test_a_store_without_maps_is_told_in_one_line(mapped, tmp_path):
    with pytest.raises(RunError, match=r"^method 'at' needs the teacher's maps, which 'plain' .*with maps: maps\);"):
        train(config(mapped, tmp_path / "run", method=ATConfig(), teacher="plain"))
    with pytest.raises(StoreError, match="no teacher 'nobody' in this store"):
        mapped.teacher_tokens("nobody")
    train(config(mapped, tmp_path / "other", method=FitNetConfig(), teacher="plain", steps=1))


def test_a_teacher_without_a_map_is_told_in_one_line(prepared, ears, tmp_path):
    store = Store(shutil.copytree(prepared, tmp_path / "store"))
    teacher = replace(load_teacher(ears), network=Faceless(), classes=(), source="a faceless network")
    files = sorted(file.name for file in store.folder.iterdir())
    with pytest.raises(TeacherError, match=r"^teacher 'it': expected .* map, .* found none in a faceless network$"):
        embed(store, teacher, "it", maps=True)
    assert sorted(file.name for file in store.folder.iterdir()) == files
    assert Store(store.folder).teachers == {}
    assert embed(store, teacher, "it").positions == 0


def test_features_without_maps_replace_those_with(mapped, ears, tmp_path):
    store = Store(shutil.copytree(mapped.folder, tmp_path / "store"))
    file = store.folder / "teacher-maps-tokens.npy"
    assert file.is_file()
    embed(store, load_teacher(ears), "maps")
    store = Store(store.folder)
    assert not file.exists()
    assert store.teachers["maps"].positions == 0
    assert store.teacher_tokens("maps") is None
    assert store.verify() == []
    embed(store, load_teacher(ears), "maps", maps=True)
    np.testing.assert_array_equal(Store(store.folder).teacher_tokens("maps"), mapped.teacher_tokens("maps"))


def test_the_command_and_a_teacher_of_other_classes(prepared, tmp_path, capsys):
    """Its logits are those of a fitted head, its maps its own."""
    store = shutil.copytree(prepared, tmp_path / "store")
    strange = save_ears(tmp_path / "strange", ("bark", "hum"))
    assert main(["embed", str(store), "--teacher", str(strange), "--maps", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fitted_head"]
    assert report["positions"] == Store(store).teacher_tokens("sound").shape[1] > 1


def test_maps_need_a_row_for_every_clip(mapped, tmp_path):
    store = Store(shutil.copytree(mapped.folder, tmp_path / "store"))
    rows = np.zeros((len(store), 4), np.float32)
    with pytest.raises(StoreError, match=f"teacher 'x': 3 rows for {len(store)} clips"):
        store.add_teacher(
            "x", modality="sound", source="", embedding=rows, logits=None, classes=(), tokens=np.zeros((3, 2, 4))
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
    inputs = torch.zeros(1, 3, 2, 64, 64) if teacher.view.modality == "picture" else torch.zeros(1, 32000)
    with torch.inference_mode():
        features = teacher.network.eval()(inputs)
    assert features.tokens is not None
    assert features.tokens.shape[1] > 1
    assert features.tokens.shape[2] == TEACHERS[name].width
