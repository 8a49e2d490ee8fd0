"""The examples run: the notebook cell by cell, the networks and methods of one's own, the app of a Space."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import matplotlib
import pytest

from avdistill import MODELS, ClipDataset, Student
from avdistill.cli import main
from avdistill.training import train
from support.training_cases import config

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
#: instead of the notebook's cell with the tag "parameters"
SMALL = """
WORK = Path("from_folder")
VIDEOS, LIST = WORK / "data" / "videos", WORK / "data" / "annotations.csv"
SIZE = {"teacher_clips": 16, "labeled_clips": 16, "unlabeled_clips": 8, "test_clips": 8, "seconds": 1.0}
TEACHER_STEPS, STUDENT_STEPS = 2, 2
"""


def example(name, monkeypatch):
    """The module of an example."""
    monkeypatch.syspath_prepend(str((EXAMPLES / name).parent))
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def called(module, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, words)])
    module.main()


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_notebook_runs_from_a_folder_to_predictions(tmp_path, monkeypatch, capsys):
    """Its cells in order, in one namespace, as a notebook runs them; only the sizes are smaller."""
    notebook = json.loads((EXAMPLES / "from_folder.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = [SMALL if "parameters" in cell["metadata"].get("tags", ()) else "".join(cell["source"]) for cell in cells]
    assert sources.count(SMALL) == 1
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    space = {}
    try:
        for source in sources:
            exec(source, space)
        assert len(space["plt"].get_fignums()) == 4
    finally:
        space["plt"].close("all")
    assert "top-1 accuracy 0." in capsys.readouterr().out
    assert (tmp_path / "from_folder" / "student" / "best" / "model.safetensors").is_file()


def test_the_notebook_shows_what_it_found():
    """It is stored with its outputs: the images are what a reader of the repository sees."""
    notebook = json.loads((EXAMPLES / "from_folder.ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert (EXAMPLES / "from_folder.ipynb").stat().st_size < 500_000


def test_a_custom_method(taught, tmp_path, capsys):
    words = ["--student.view.frames", "4", "--student.view.size", "16", "24", "--batch-size", "6", "--steps", "2"]
    method = f"{EXAMPLES / 'custom_method.py'}:Cosine"
    run = [
        "train",
        "tiny_supervised",
        "--method",
        method,
        "--dataset",
        str(taught.folder),
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*run, *words]) == 0, capsys.readouterr().err
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert set(line["losses"]) == {"classification", "cosine"}


def test_a_custom_student(taught, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("avdistill.models.registry.MODELS", MODELS)  # what the example adds stays in this test
    known = dict(MODELS)
    try:
        module = example("custom_student.py", monkeypatch)
        called(module, monkeypatch, "--dataset", taught.folder, "--out", tmp_path / "run", "--steps", 2)
        assert Student.from_pretrained(tmp_path / "run").config.model == "frame_differences"
    finally:
        MODELS.clear()
        MODELS.update(known)
    assert "frame_differences: " in capsys.readouterr().out


def test_a_custom_teacher(many_clips, monkeypatch, capsys):
    module = example("custom_teacher.py", monkeypatch)
    called(module, monkeypatch, "--dataset", many_clips.folder)
    assert capsys.readouterr().out == "teacher 'spectrum': 40 of 40 clips\n"
    stored = ClipDataset(many_clips.folder).features("spectrum")
    assert stored.embedding.shape == (40, 64)
    assert stored.classes == many_clips.classes  # by the linear head


@pytest.fixture
def gradio(monkeypatch):
    """A stand-in for Gradio, which is too large to install for a test: it remembers what a page is made of."""
    stub = types.ModuleType("gradio")
    for name in ("Interface", "Video", "Audio", "Label", "Dataframe"):
        setattr(stub, name, lambda name=name, **settings: types.SimpleNamespace(name=name, **settings))
    stub.Error = type("Error", (Exception,), {})
    monkeypatch.setitem(sys.modules, "gradio", stub)
    return stub


def test_the_app_of_a_space_shows_what_a_student_says(taught, small_set, gradio, tmp_path, monkeypatch):
    run = train(config(taught.folder, tmp_path / "run", steps=1))
    monkeypatch.setenv("STUDENT", str(run))
    app = example("space/app.py", monkeypatch)
    assert (app.demo.fn, app.demo.inputs.name) == (app.predict, "Video")
    assert [each.name for each in app.demo.outputs] == ["Label", "Dataframe"]
    folder, annotations = small_set
    expected = Student.from_pretrained(run).predict(folder / annotations[0].path)
    labels, rows = app.predict(str(folder / annotations[0].path))
    assert labels == dict(expected.top)
    assert [row[2] for row in rows] == [segment.label for segment in expected.segments]
    assert len(app.demo.outputs[1].headers) == len(rows[0])
    assert app.predict(None) == ({}, [])
    (tmp_path / "no.mp4").write_text("no video")
    with pytest.raises(gradio.Error, match=r"no\.mp4"):
        app.predict(str(tmp_path / "no.mp4"))


def test_a_space_has_the_files_it_names():
    card = (EXAMPLES / "space" / "README.md").read_text().split("---\n")[1]
    settings = dict(line.split(": ") for line in card.splitlines())
    assert settings["sdk"] == "gradio"
    assert (EXAMPLES / "space" / settings["app_file"]).is_file()
    assert "avdistill" in (EXAMPLES / "space" / "requirements.txt").read_text()
