"""Embeddings from files: which clip each belongs to, and what is said of files that cannot be right."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import DatasetError, TeacherError
from avdistill.teachers.precomputed import embed_precomputed
from avdistill.teachers.registry import load_teacher
from support.features import feature_arrays, part_files


@pytest.fixture
def dataset(prepared, tmp_path) -> ClipDataset:
    shutil.copytree(prepared, tmp_path / "dataset")
    return ClipDataset(tmp_path / "dataset")


def ids(dataset: ClipDataset) -> list[str]:
    return dataset.columns["id"].tolist()


def test_a_folder_is_joined_by_clip_id(dataset, tmp_path, capsys):
    folder = tmp_path / "features"
    folder.mkdir()
    first, second, *_ = ids(dataset)
    np.save(folder / f"{first}.npy", np.arange(5.0))
    np.save(folder / f"{second}.npy", np.arange(5, dtype=np.int16)[None] + 1)
    np.save(folder / "of_no_clip.npy", np.ones(7))
    assert main(["embed", str(dataset.folder), "--teacher", f"precomputed:{folder}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["modality"], told["embedding_dim"], told["clips"]) == ("audio", "audio", 5, 2)
    embedding, _, present = feature_arrays(ClipDataset(dataset.folder), "audio")
    assert told["head"]["labeled_clips"] > 0
    assert present.tolist() == [True, True] + [False] * (len(dataset) - 2)
    assert embedding[:2].tolist() == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
    assert ClipDataset(dataset.folder).verify() == []


def test_the_splits_of_a_head_can_be_named(dataset, tmp_path, capsys):
    np.savez(
        tmp_path / "t.npz", name=ids(dataset), embedding=np.random.default_rng(0).standard_normal((len(dataset), 4))
    )
    call = ["embed", str(dataset.folder), "--teacher", f"precomputed:{tmp_path / 't.npz'}", "--json", "--head-split"]
    assert main([*call, "train+test"]) == 0
    told = json.loads(capsys.readouterr().out)
    labeled = sum(
        bool(dataset.labels[i]) for i, split in enumerate(dataset.columns["split"]) if split in ("train", "test")
    )
    assert told["head_split"] == "train+test"
    assert told["head"]["labeled_clips"] == labeled
    assert main([*call, "nowhere"]) == 1
    assert "no clip in split 'nowhere'" in capsys.readouterr().err


def test_a_table_is_joined_in_any_order_with_its_logits(dataset, tmp_path):
    names = ids(dataset)[::-1]
    values = np.random.default_rng(0).standard_normal((len(names), 4))
    logits = np.arange(4.0 * len(names)).reshape(-1, 4)
    classes = ("class_2", "dog", "class_0", "class_1")
    np.savez(tmp_path / "t.npz", name=names, embedding=values, logits=logits, classes=classes)
    entry = embed_precomputed(dataset, str(tmp_path / "t.npz"), "image", "video")
    assert (entry.modality, entry.classes, entry.clips) == ("video", classes, len(names))
    embedding, stored, present = feature_arrays(ClipDataset(dataset.folder), "image")
    assert present.all()
    np.testing.assert_array_equal(embedding, values[::-1].astype(np.float32))
    np.testing.assert_array_equal(stored, logits[::-1])


def test_a_files_stem_stands_for_its_only_clip(dataset, tmp_path):
    # Two clips of one file, and one of a file of its own, under ids that are not the files' names.
    import pyarrow as pa

    table = dataset.table.slice(0, 3)
    for key, values in (("id", ["x", "y", "z"]), ("path", ["d/both.mp4", "d/both.mp4", "d/own.v1.mp4"])):
        table = table.set_column(table.schema.get_field_index(key), key, pa.array(values))
    dataset.table, dataset._description = table, replace(dataset._description, clips=3)
    np.savez(tmp_path / "t.npz", name=["both", "own.v1", "y"], embedding=np.arange(6.0).reshape(3, 2))
    embed_precomputed(dataset, tmp_path / "t.npz", "audio")
    (part,) = part_files(dataset, "audio", "embedding")
    np.testing.assert_array_equal(np.load(part), [[0, 0], [4, 5], [2, 3]])
    np.testing.assert_array_equal(np.load(part_files(dataset, "audio", "valid")[0]), [False, True, True])


def table(**changed) -> dict:
    return {"name": ["a", "b"], "embedding": np.ones((2, 3)), **changed}


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        (table(), r"0 of \d+ clips matched: expected names such as '.+', found 2 names such as 'a'"),
        (table(name=["a", "a"]), "expected every name once, found 'a' 2 times"),
        (table(name=np.array([{}, {}], dtype=object)), r"expected an \.npz of plain arrays"),
        (table(name=[1, 2]), r"name: expected strings of shape \(N,\), found int64 \(2,\)"),
        (table(embedding=np.ones((3, 2))), r"embedding: expected numbers of shape \(2, columns\).* float64 \(3, 2\)"),
        (table(embedding=np.full((2, 3), np.inf)), "embedding: expected finite numbers"),
        (table(logits=np.ones((2, 2))), "expected 'logits' and 'classes' together"),
        (table(logits=np.ones((2, 2)), classes=["c"]), "expected logits of the 1 classes, found 2 columns"),
        ({"embedding": np.ones((2, 3))}, "expected the array 'name', found embedding"),
    ],
)
def test_a_table_that_cannot_be_right_is_one_line(dataset, tmp_path, arrays, told):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DatasetError, match=rf"t\.npz: {told}") as error:
        embed_precomputed(dataset, tmp_path / "t.npz", "audio")
    assert "\n" not in str(error.value)
    assert ClipDataset(dataset.folder).teachers == {}


def test_files_that_cannot_be_right_are_one_line(dataset, tmp_path, capsys):
    with pytest.raises(DatasetError, match=r"expected a folder of <clip id>\.npy or an \.npz, found nothing"):
        embed_precomputed(dataset, tmp_path / "nothing", "audio")
    folder = tmp_path / "features"
    folder.mkdir()
    with pytest.raises(DatasetError, match=r"0 of \d+ clips matched.*found no \.npy$"):
        embed_precomputed(dataset, folder, "audio")
    (tmp_path / "t.npz").write_bytes(b"PK no archive")
    with pytest.raises(DatasetError, match=r"expected an \.npz of plain arrays"):
        embed_precomputed(dataset, tmp_path / "t.npz", "audio")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("name.npy", b"no array")  # of which NumPy gives the bytes
        archive.writestr("embedding.npy", b"")
    with pytest.raises(DatasetError, match=r"expected an \.npz of plain arrays: 'name' is none"):
        embed_precomputed(dataset, tmp_path / "text.npz", "audio")
    np.save(tmp_path / "t.npy", np.ones((2, 3)))
    with pytest.raises(DatasetError, match=r"expected an \.npz of plain arrays"):
        embed_precomputed(dataset, tmp_path / "t.npy", "audio")
    first, second, third, *_ = ids(dataset)
    header = b"(" * 4000  # of which NumPy's parser raises what it likes
    (folder / f"{first}.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DatasetError, match=r"expected an array of numbers"):
        embed_precomputed(dataset, folder, "audio")
    for name, width in ((first, 4), (second, 4), (third, 5)):
        np.save(folder / f"{name}.npy", np.ones(width))
    assert main(["embed", str(dataset.folder), "--teacher", f"precomputed:{folder}"]) == 1
    line = capsys.readouterr().err
    assert line == f"avdistill: {folder / third}.npy: expected an embedding of size 4 as in the other files, found 5\n"
    video = ["--modality", "video"]
    assert main(["embed", str(dataset.folder), "--teacher", str(tmp_path), *video]) == 2
    assert "--modality: expected with precomputed:" in capsys.readouterr().err
    with pytest.raises(TeacherError, match="`avdistill embed` stores them in a dataset"):
        load_teacher(f"precomputed:{folder}")
    assert ClipDataset(dataset.folder).teachers == {}
