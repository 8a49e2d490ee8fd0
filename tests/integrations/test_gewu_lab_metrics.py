"""Metrics and predictions in the form of the released implementation."""

import json

import pytest
import torch

from avdistill.cli import main
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.retrieval import retrieve
from avdistill.inputs import VideoInput
from avdistill.integrations.gewu_lab.metrics import top_k_predictions
from avdistill.models.checkpoint import save_student
from avdistill.models.registry import build_model
from avdistill.types import StudentConfig

ONE = torch.tensor([[0.5, 0.5]])


def test_predictions_in_the_layout_of_the_release():
    probabilities = torch.tensor([[0.125, 0.5, 0.125, 0.25], [0.25, 0.25, 0.25, 0.25]])
    names = ["v_a_g01_c01", "v_b_g01_c01"]
    result = top_k_predictions(probabilities=probabilities, names=names, class_names=list("wxyz"), k=3)
    assert json.loads(json.dumps(result)) == {
        "results": {
            "v_a_g01_c01": [
                {"label": "x", "score": 0.5},
                {"label": "z", "score": 0.25},
                {"label": "w", "score": 0.125},
            ],
            "v_b_g01_c01": [
                {"label": "w", "score": 0.25},
                {"label": "x", "score": 0.25},
                {"label": "y", "score": 0.25},
            ],
        }
    }
    full = top_k_predictions(probabilities=probabilities, names=names, class_names=list("wxyz"))
    assert [len(entries) for entries in full["results"].values()] == [4, 4]


@pytest.mark.parametrize(
    ("names", "classes", "options", "message"),
    [
        (["a", "b"], ["x", "y"], {}, "2 names"),
        (["a"], ["x"], {}, "1 class names"),
        (["a"], ["x", "y"], {"k": 0}, "k must be"),
        (["a", "a"], ["x", "y"], {}, "same name"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, classes, options, message):
    probabilities = ONE[[0, 0]] if message == "same name" else ONE
    with pytest.raises(ValueError, match=message):
        top_k_predictions(probabilities=probabilities, names=names, class_names=classes, **options)


def test_the_verbs(taught, tmp_path, capsys):
    torch.manual_seed(0)
    classes = ("class_0", "class_1", "class_2")
    config = StudentConfig("shifted_frames", classes, VideoInput(frames=4, size=(24, 32)), 10.0, 16000)
    save_student(tmp_path, build_model("shifted_frames", 3).eval(), config)
    assert main(["reference", "retrieve", str(tmp_path), str(taught.folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["map@500"] == pytest.approx(retrieve(tmp_path, taught).metrics.map)  # all ranks count
    assert main(["reference", "retrieve", str(tmp_path), str(taught.folder), "--top", "1"]) == 0
    assert "map@1" in capsys.readouterr().out
    words = ["reference", "predictions", str(tmp_path), str(taught.folder), "--top", "2"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = {row["id"]: row["predicted"] for row in evaluate(tmp_path, taught).predictions}
    assert {name: rows[0]["label"] for name, rows in printed["results"].items()} == expected
    assert {len(rows) for rows in printed["results"].values()} == {2}
    assert main([*words, "--out", str(tmp_path / "there" / "top_k.json")]) == 0
    assert json.loads((tmp_path / "there" / "top_k.json").read_text()) == printed
