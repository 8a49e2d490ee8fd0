"""Catalogs of classes: their counts and names against the datasets' own lists, and the choice of clips by them."""

import logging

import numpy as np
import pytest
from torchvision.models.video import R3D_18_Weights

from avdistill.annotations import Annotation
from avdistill.annotations.class_sets import CATALOGS, class_set, keep_class_set
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import AnnotationError
from support.media_files import write_video

FRAMES = np.zeros((3, 16, 24, 3), np.uint8)


@pytest.mark.parametrize("name", CATALOGS)
def test_names_are_sorted_once_each_and_as_many_as_the_dataset_has(name):
    counts = {"ucf51": 51, "vggsound": 309} | {f"kinetics_sounds_{n}": n for n in (31, 32, 33, 34)}
    found = class_set(name)
    assert len(found) == len(set(found)) == counts[name]
    assert list(found) == sorted(found)
    assert all(label == label.strip() and label for label in found)


@pytest.mark.parametrize("count", [31, 32, 33])
def test_the_later_versions_have_the_names_of_kinetics_400(count):
    """Oracle: the categories of torchvision's Kinetics-400 networks."""
    assert set(class_set(f"kinetics_sounds_{count}")) <= set(R3D_18_Weights.DEFAULT.meta["categories"])


def test_versions_differ_as_their_authors_say():
    first, second, third, fourth = (set(class_set(f"kinetics_sounds_{n}")) for n in (31, 32, 33, 34))
    assert second - first == {"strumming guitar"}
    assert first < second
    assert third - first == {"tying tie", "finger snapping"}
    assert first < third
    kinetics = set(R3D_18_Weights.DEFAULT.meta["categories"])
    early = {"blowing out", "dribbling ball", "fingerpicking", "mowing the lawn by pushing lawnmower", "patting",
             "stomping", "typing"}  # fmt: skip
    assert fourth - kinetics == early
    assert fourth - early == first - {"blowing out candles", "dribbling basketball", "mowing lawn", "stomping grapes"}


def test_some_names_of_vggsound():
    """From the appendix of the paper: with commas, and with the dataset's own misspelling."""
    expected = {
        "female speech, woman speaking",
        "bee, wasp, etc. buzzing",
        "eletric blender running",
        "police car (siren)",
    }
    assert expected <= set(class_set("vggsound"))


def clip(name, *labels):
    return Annotation(name, f"{name}.mp4", labels, "train")


def test_clips_are_chosen_by_a_catalog_and_spelled_as_there(caplog):
    listed = [clip("a", "Playing_Harmonica"), clip("b", "abseiling"), clip("c", "singing", "abseiling"), clip("d")]
    with caplog.at_level(logging.INFO, "avdistill"):
        kept = keep_class_set(listed, "kinetics_sounds_31")
    assert [(each.clip_id, each.labels) for each in kept] == [("a", ("playing harmonica",)), ("c", ("singing",))]
    assert "29 of its 31 classes have no clip (blowing nose, blowing out candles, bowling, ...)" in caplog.text
    assert keep_class_set([clip("e", "HandStandPushups")], "ucf51")[0].labels == ("HandstandPushups",)
    with pytest.raises(AnnotationError, match="expected clips with one of its 51 labels, found none"):
        keep_class_set(listed, "ucf51")
    with pytest.raises(AnnotationError, match=r"expected one of kinetics_sounds_31, .*, found 'kinetics'"):
        class_set("kinetics")


def test_prepare_takes_a_catalog(tmp_path, capsys):
    for label in ("tap_dancing", "abseiling"):
        (tmp_path / "videos" / label).mkdir(parents=True)
        write_video(tmp_path / "videos" / label / "a.mp4", frames=FRAMES)
    words = ["prepare", str(tmp_path / "videos"), "--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "out"),
             "--workers", "1", "--short-side", "16"]  # fmt: skip
    assert main([*words, "--catalog", "kinetics_sounds_32"]) == 0
    assert ClipDataset(tmp_path / "out").labels == [("tap dancing",)]
    (tmp_path / "names.txt").write_text("abseiling\n")
    assert main([*words, "--catalog", "kinetics_sounds_32", "--labels", str(tmp_path / "names.txt")]) == 2
    assert "--labels: expected it or --catalog, found both" in capsys.readouterr().err
