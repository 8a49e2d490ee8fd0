"""What of `dataset.json`, `clips.parquet` and a teacher's files is refused, in one line; groups; stored features."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avdistill.annotations import Annotation
from avdistill.cli import main
from avdistill.dataset import features
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import DatasetError
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.features import part_files
from support.media_files import SMALL, numbered_frames, write_video

CONFIG = PrepareConfig(fps=10, short_side=32)


def damaged(prepared, folder, change):
    """The one line that a dataset is refused with whose `dataset.json` is what `change` makes of it."""
    folder.mkdir(exist_ok=True)
    shutil.copy(prepared / "clips.parquet", folder)
    description = json.loads((prepared / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(change(description)))
    with pytest.raises(DatasetError) as refused:
        ClipDataset(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value).removeprefix(f"{folder}: ")


ENTRY = {"name": "x", "modality": "audio", "embedding_dim": 2, "num_tokens": 0, "classes": [], "provenance": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: [], "dataset.json: expected an object with keys, got []"),
        (lambda d: {"version": 1}, "expected dataset format 4, found 1; prepare it again"),
        (lambda d: {}, "expected dataset format 4, found None; prepare it again"),
        (lambda d: d | {"version": 5}, "expected dataset format 4, found 5; prepare it again"),
        (lambda d: {"version": 4}, "dataset.json.frame_encoding: missing"),
        (lambda d: d | {"frame_encoding": "png"}, "dataset.json.frame_encoding: expected one of 'raw', 'jpeg'"),
        (lambda d: d | {"sample_rate_hz": "16000"}, "dataset.json.sample_rate_hz: expected int, got '16000'"),
        (lambda d: d | {"features": {}}, "dataset.json.features: unknown key"),
        (lambda d: d | {"clips": 1}, f"clips.parquet: expected 1 rows as in dataset.json, found {len(SMALL)}"),
    ],
)
def test_a_damaged_or_newer_description_is_refused_in_one_line(prepared, tmp_path, change, message):
    assert damaged(prepared, tmp_path / "dataset", change).startswith(message)


def test_a_description_that_is_no_json_is_refused_in_one_line(prepared, tmp_path, capsys):
    (tmp_path / "dataset.json").write_bytes(b"\xff\x00{")
    assert main(["info", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"avdistill: {tmp_path}: dataset.json is damaged: ")
    assert said.count("\n") == 1


def test_columns_that_are_missing_or_of_another_type_are_named(prepared, tmp_path):
    shutil.copy(prepared / "dataset.json", tmp_path)
    table = pq.read_table(prepared / "clips.parquet")
    pq.write_table(table.drop_columns("group"), tmp_path / "clips.parquet")
    with pytest.raises(DatasetError, match=r"clips\.parquet: expected a column 'group' of string, found none$"):
        ClipDataset(tmp_path)
    place, texts = table.column_names.index("frame_count"), [str(n) for n in table["frame_count"].to_pylist()]
    pq.write_table(table.set_column(place, "frame_count", pa.array(texts)), tmp_path / "clips.parquet")
    with pytest.raises(DatasetError, match=r"clips\.parquet: expected a column 'frame_count' of int64, found string$"):
        ClipDataset(tmp_path)
    (tmp_path / "clips.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"clips\.parquet is missing or damaged"):
        ClipDataset(tmp_path)


def test_features_whose_file_is_gone_or_of_another_shape_are_refused(taught, tmp_path):
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    files = {kind: part_files(dataset, "audio", kind)[0] for kind in ("logits", "embedding")}
    np.save(files["logits"], np.zeros((2, 3), np.float32))
    with pytest.raises(DatasetError, match=r"\.logits\.npy: expected float32 \(\d+, 3\), found float32 \(2, 3\)"):
        dataset.features("audio")
    files["embedding"].unlink()
    with pytest.raises(DatasetError, match=r"\.embedding\.npy: damaged or missing"):
        dataset.features("audio")


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: [], "features/audio/features.json: expected an object with keys, got []"),
        (lambda d: d | {"version": 2}, "features/audio/features.json: expected format 1, found 2; embed it again"),
        (lambda d: d | {"entry": ENTRY}, "features/audio/features.json.entry.clips: missing"),
        (lambda d: d | {"entry": d["entry"] | {"name": "x"}}, "features/audio/features.json: expected its own name"),
        (lambda d: d | {"entry": d["entry"] | {"embedding_dim": 0}}, "features.json: expected an embedding"),
        (lambda d: d | {"dataset": DIGEST}, "features/audio/features.json: expected features of these clips"),
        (lambda d: d | {"clips": d["clips"] + 1}, "features.json.parts: expected"),
        (lambda d: d | {"parts": []}, f"features.json.parts: expected {len(SMALL)} clips, found 0"),
        (lambda d: d | {"parts": [d["parts"][0] | {"first": 1}]}, "parts: expected one from clip 0 on, found 1"),
        (lambda d: d | {"parts": [d["parts"][0] | {"files": {"valid": DIGEST}}]}, "parts: expected ['embedding', "),
        (
            lambda d: d | {"parts": [d["parts"][0] | {"files": d["parts"][0]["files"] | {"logits": "../../x"}}]},
            "parts: expected a SHA-256, found '../../x'",
        ),
    ],
)
def test_a_damaged_table_of_features_is_refused_in_one_line(taught, tmp_path, change, message):
    folder = shutil.copytree(taught.folder, tmp_path / "dataset")
    file = folder / "features" / "audio" / "features.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(DatasetError) as refused:
        ClipDataset(folder)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture
def copied(taught, tmp_path):
    """A dataset with features, to write into."""
    return ClipDataset(shutil.copytree(taught.folder, tmp_path / "copied"))


def test_features_of_several_parts_are_those_of_one(copied, monkeypatch):
    """Also where no clip of a part has any, for clips in any order, and while others replace them."""
    stored = copied.features("audio")
    about = {"modality": "audio", "provenance": {"name": "t"}, "classes": copied.classes}
    embedding, logits = (np.where(stored.valid[:, None], x, np.nan) for x in (stored.embedding, stored.logits))
    embedding[4:8] = np.nan
    valid = ~np.isnan(embedding[:, 0])
    monkeypatch.setattr(features, "PART_CLIPS", 4)
    copied.add_features("parts", embedding=embedding, logits=logits, **about)
    assert len(part_files(copied, "parts", "embedding")) == -(-len(copied) // 4) - 1
    assert copied.verify() == []
    mapped = ClipDataset(copied.folder).map_features("parts")
    copied.add_features("parts", embedding=np.ones_like(embedding), logits=None, **about)
    clips = np.array([len(copied) - 1, 5, 0, 0, 9])
    selected = mapped.with_classes(copied.classes[::-1]).select(clips)
    expected = np.where(valid[clips, None], embedding[clips], 0)
    np.testing.assert_array_equal(selected.embedding.numpy(), expected)
    np.testing.assert_array_equal(selected.logits.numpy(), np.where(valid[clips, None], logits[clips, ::-1], 0))
    np.testing.assert_array_equal(mapped.valid, valid)
    with pytest.raises(DatasetError, match="replaced since the dataset was opened"):
        ClipDataset.map_features(_as_before(copied, mapped), "parts")


def _as_before(dataset, mapped):
    """The dataset as somebody opened it before the features were replaced."""
    opened = ClipDataset(dataset.folder)
    opened._features = {"parts": mapped.description}
    return opened


def test_numbers_that_are_not_finite_are_not_stored(copied):
    embedding = np.ones((len(copied), 3), np.float32)
    embedding[1, 1] = np.inf
    with pytest.raises(DatasetError, match="teacher 'x': embedding: expected finite numbers"):
        copied.add_features("x", modality="audio", provenance={}, embedding=embedding, logits=None, classes=())
    assert "x" not in ClipDataset(copied.folder).teachers


def test_parts_of_one_video_are_a_group(tmp_path):
    names = ["v_Typing_g01_c01", "v_Typing_g01_c02", "other"]
    for name in names:
        write_video(tmp_path / f"{name}.mp4", frames=numbered_frames(4))
    listed = [Annotation(name, f"{name}.mp4", (), "train") for name in names]
    dataset = prepare(listed, tmp_path, tmp_path / "dataset", CONFIG, workers=1)
    assert dataset.columns["group"].tolist() == ["v_Typing_g01", "v_Typing_g01", "other.mp4"]


def test_logits_come_in_the_order_of_the_classes_asked_for(copied):
    stored = copied.features("audio")
    turned = stored.with_classes(copied.classes[::-1])
    np.testing.assert_array_equal(turned.logits, stored.logits[:, ::-1])
    assert turned.classes == copied.classes[::-1]
    assert stored.with_classes(("unknown",)).logits is None
    np.testing.assert_array_equal(stored.select(np.array([2, 0])).logits.numpy(), stored.logits[[2, 0]])
