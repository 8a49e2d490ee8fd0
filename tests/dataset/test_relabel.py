"""Labels of a list in a copy of a dataset: by id or by path, with everything else as it was."""

import csv
import json

import numpy as np
import pytest

from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.relabel import read_labels, relabel
from avdistill.errors import AnnotationError, DatasetError


def written(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_the_filled_list_of_suggest_is_merged_and_all_else_stays(many_clips, tmp_path, capsys):
    few, new = tmp_path / "few", tmp_path / "new"
    assert main(["corrupt", str(many_clips.folder), "label_fraction=0.3", "--out", str(few)]) == 0
    assert main(["suggest", str(few), "-n", "4", "--out", str(tmp_path / "list.csv")]) == 0
    with (tmp_path / "list.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    true = dict(zip(many_clips.columns["id"], many_clips.labels, strict=True))
    for row in rows[:3]:  # the fourth is left empty
        row["label"] = true[row["id"]][0]
    rows[2]["label"] = "a new class|" + rows[2]["label"]
    written(tmp_path / "list.csv", rows[0].keys(), [row.values() for row in rows])
    capsys.readouterr()
    call = ["relabel", str(few), str(tmp_path / "list.csv"), "--out", str(new), "--json"]
    assert main(call) == 0
    told = json.loads(capsys.readouterr().out)
    before, after = ClipDataset(few), ClipDataset(new)
    assert (told["relabeled"], told["labeled"]) == (3, sum(map(bool, before.labels)) + 3)
    assert set(after.classes) == {*before.classes, "a new class"}
    wanted = {row["id"]: tuple(row["label"].split("|")) for row in rows[:3]}
    for clip, name in enumerate(after.columns["id"]):
        assert set(after.labels[clip]) == set(wanted.get(name, before.labels[clip]))
        assert np.array_equal(after.frames(clip), before.frames(clip))
        assert np.array_equal(after.audio(clip), before.audio(clip))
    assert np.array_equal(after.features("audio").embedding, before.features("audio").embedding)
    assert after.verify() == []
    assert after.checksum != before.checksum
    assert main(call) == 0  # it is there
    assert json.loads(capsys.readouterr().out) == told
    rows[3]["label"] = "another"
    written(tmp_path / "list.csv", rows[0].keys(), [row.values() for row in rows])
    assert main(call) == 1
    assert "already there, and not this dataset with the labels of" in capsys.readouterr().err


def test_a_path_means_all_clips_of_the_file(many_clips, tmp_path):
    path = str(many_clips.columns["path"][0])
    clips = np.flatnonzero(many_clips.columns["path"] == path).tolist()
    found = read_labels(written(tmp_path / "l.csv", ["path", "label"], [[path, "walking"]]), many_clips)
    assert found == dict.fromkeys(clips, ("walking",))


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["id", "class"], [["a", "b"]], "expected the columns label and id, or label and path, found id, class"),
        (["id", "label"], [["nobody", "b"]], r"line 2: expected the id of a clip of .*, found .nobody."),
        (["path", "label"], [["nobody.mp4", "b"]], r"expected the path of a clip"),
        (["id", "label"], [["train_0", "b"], ["train_0", "c"]], r"line 3: expected one label for .train_0., found two"),
        (["id", "label"], [["train_0", ""]], "expected a label, found none"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_with_its_line(many_clips, tmp_path, header, rows, message):
    rows = [[str(many_clips.columns["id"][0]) if cell == "train_0" else cell for cell in row] for row in rows]
    message = message.replace("train_0", str(many_clips.columns["id"][0]))
    with pytest.raises(AnnotationError, match=message):
        relabel(many_clips, written(tmp_path / "l.csv", header, rows), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_in_the_way_stays(many_clips, tmp_path):
    labels = written(tmp_path / "l.csv", ["id", "label"], [[many_clips.columns["id"][0], "b"]])
    with pytest.raises(DatasetError, match="already there"):
        relabel(many_clips, labels, many_clips.folder)
    with pytest.raises(AnnotationError, match="No such file"):
        relabel(many_clips, tmp_path / "none.csv", tmp_path / "new")
