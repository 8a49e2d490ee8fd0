"""The students in `checkpoints/`: small, described, and usable on files and datasets."""

import hashlib
import json
import re
from pathlib import Path

import pytest

import avdistill
from avdistill.annotations import Annotation
from avdistill.cli import main
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.media_files import SMALL

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
FOLDERS = sorted(CHECKPOINTS.glob("*"))
CLASSES = {"grid": 51, "ucf51": 14}
pytestmark = pytest.mark.skipif(not FOLDERS, reason="checkpoints/ is not here: a source distribution has none")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_checkpoint_is_used_as_its_card_says(folder, small_set, tmp_path, capsys):
    student = avdistill.Student.from_pretrained(folder, region="whole")  # the lip reader's is larger than these videos
    files, annotations = small_set
    annotations = [clip for clip, (*_, audio) in zip(annotations, SMALL, strict=True) if audio == "tone"]
    first = files / annotations[0].path
    predicted = student.predict(first)
    assert student.embed(first).shape == (student.network.embedding_dim,)
    assert len(student.config.classes) == CLASSES[folder.name.partition("_")[0]]
    assert predicted.label in predicted.classes
    assert predicted.probabilities.sum() == pytest.approx(1, abs=1e-5)

    config = student.config
    renamed = [
        Annotation(clip.clip_id, clip.path, (config.classes[i % 2],), "test") for i, clip in enumerate(annotations[:4])
    ]
    dataset = prepare(renamed, files, tmp_path / "dataset", PrepareConfig(fps=config.fps, short_side=64), workers=1)
    assert main(["evaluate", str(folder), str(dataset.folder), "--out", str(tmp_path / "metrics"), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert 0 <= metrics["top1_accuracy"] <= 1
    assert metrics["clips"] == 4
    assert main(["predict", str(folder), str(first), "--region", "whole"]) == 0


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_card_says_what_the_weights_are(folder):
    weights, card = folder / "model.safetensors", (folder / "README.md").read_text(encoding="utf-8")
    assert weights.stat().st_size < 4_000_000
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    assert re.search(r"top-1 accuracy \| 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)", card)
    for part in ("training data", "teacher", "License", "Not for"):
        assert part in card
