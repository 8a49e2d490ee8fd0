"""Names from somebody else's files do not steer a terminal, and HDF5 files do not lead to others."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avdistill.cli import main
from avdistill.commands import console
from avdistill.commands.console import output, printable, progress_bar
from avdistill.errors import UnreadableFileError
from avdistill.inference.predictor import Student
from avdistill.integrations.gewu_lab.hdf5 import _images
from avdistill.methods.kd import KDConfig
from avdistill.progress import Progress
from avdistill.training import train
from support.training_cases import config

STEERING = "\x1b]0;title\x07\x1b[2J\x9b31m\r\b\x7f\u202egpj\u2066"


@pytest.mark.parametrize("as_json", [True, False])
def test_results_hold_no_control_characters(as_json, capsys):
    output({"id": STEERING}, [f"clip {STEERING}", "second"], as_json)
    text = capsys.readouterr().out
    assert not set(STEERING) & set(text) - set("0;title[2J31mgpj]")
    if as_json:
        assert json.loads(text) == {"id": STEERING}
    else:
        assert text.splitlines()[1] == "second"


def test_letters_of_any_language_stay():
    assert printable("héé 日本 עברית\nعربى") == "héé 日本 עברית\nعربى"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_takes_any_name(terminal, monkeypatch, capsys):
    monkeypatch.setattr(console.MESSAGES, "_force_terminal", terminal)
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with progress_bar("[/red]" + STEERING) as update:
        update(Progress(1, 2, "[/]" + STEERING))
    told = capsys.readouterr().err
    assert "[/red]" in told
    assert "\x07" not in told


def test_a_log_gets_a_line_a_minute_and_one_at_the_end(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress_bar("embed") as update:
        for done in range(11, 101):  # ten were done before, one takes 4 s
            now[0] += 4
            update(Progress(done, 100, "clips"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "embed: 25 of 100, 0.233 a second, 5 min left, clips"
    assert len(lines) == 7
    assert lines[-1] == "embed: 100 of 100 in 6 min"
    with progress_bar("count") as update:
        now[0] += 7200
        update(Progress(3))
        now[0] += 60
        update(Progress(4))
    assert capsys.readouterr().err.splitlines()[1:] == ["count: 4, 0.000138 a second", "count: 4 in 2 h 1 min"]


def steered(value):
    """The same JSON value with steering characters in the name of a class."""
    if isinstance(value, dict):
        return {steered(key): steered(each) for key, each in value.items()}
    if isinstance(value, list):
        return [steered(each) for each in value]
    return value.replace("class_1", "class_1" + STEERING) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def foreign(taught, tmp_path_factory):
    """A dataset whose ids, labels and paths hold steering characters, and a run on it."""
    folder = tmp_path_factory.mktemp("foreign")
    shutil.copytree(taught.folder, folder / "dataset")
    table = pq.read_table(folder / "dataset" / "clips.parquet")
    for name, values in (
        ("id", [value + STEERING for value in table["id"].to_pylist()]),
        ("path", [STEERING.replace("/", "") + value for value in table["path"].to_pylist()]),
        ("labels", steered(table["labels"].to_pylist())),
    ):
        column = pa.array(values, table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, folder / "dataset" / "clips.parquet")
    for name in ("dataset.json", "features/audio/features.json"):
        file = folder / "dataset" / name
        file.write_text(json.dumps(steered(json.loads(file.read_text()))))
    train(config(folder / "dataset", folder / "run", method=KDConfig(), teacher="audio", steps=2), stop_after=1)
    return folder


VERBS = {
    "info": "info dataset --no-verify",
    "verify": "info dataset",
    "resume": "resume run",
    "evaluate": "evaluate run dataset",
    "retrieve": "retrieve run dataset",
    "audit": "audit run dataset",
    "probe": "teacher probe dataset",
    "corrupt": "corrupt dataset mismatched=0.4 --out corrupted",
    "export": "export run --out exported --format safetensors --clips dataset",
    "predict": "predict run FILE",
    "table": "predict run FILE --csv -",
    "predictions": "reference predictions run dataset",
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_passes_on_what_names_say(verb, foreign, small_set, monkeypatch, capsys):
    monkeypatch.chdir(foreign)
    shutil.copy(small_set[0] / "test_1.mp4", f"name{STEERING}.mp4")
    words = [f"name{STEERING}.mp4" if word == "FILE" else word for word in VERBS[verb].split()]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    main(words)
    told = capsys.readouterr()
    assert told.out + told.err
    assert not set(STEERING) & set(told.out + told.err) - set("0;title[2J31mgpj]")


def test_cells_stay_as_they_are_and_the_docs_say_so(foreign, small_set, tmp_path):
    """A spreadsheet takes `=1+1` for a formula: what a program reads from the table must be the label."""
    trust = (Path(__file__).parents[1] / "docs" / "trust.md").read_text()
    assert "begins with `=`, `+`, `-` or `@` is text here" in trust
    student = Student.from_pretrained(foreign / "run")
    student.config = replace(student.config, classes=("=1+1", "@x", "-a"))
    student.save_pretrained(tmp_path / "student")
    file, table = str(small_set[0] / "test_1.mp4"), tmp_path / "table.csv"
    assert main(["predict", str(tmp_path / "student"), file, "--csv", str(table)]) == 0
    with table.open(newline="") as rows:
        assert {row["label"] for row in csv.DictReader(rows)} <= {"=1+1", "@x", "-a"}


@pytest.mark.parametrize("kind", ["external link", "soft link", "external data", "virtual"])
def test_images_in_another_hdf5_file_are_refused(kind, tmp_path):
    h5py = pytest.importorskip("h5py")
    other, path = tmp_path / "other.hdf5", tmp_path / "clip.hdf5"
    with h5py.File(other, "w") as file:
        file["video"] = np.array([b"secret"], "S6")
    with h5py.File(path, "w") as file:
        if kind == "external link":
            file["video"] = h5py.ExternalLink(str(other), "/video")
        elif kind == "soft link":
            file["far"] = h5py.ExternalLink(str(other), "/video")
            file["video"] = h5py.SoftLink("/far")
        elif kind == "external data":
            file.create_dataset("video", (1,), "S6", external=[(str(other), 0, 6)])
        else:
            layout = h5py.VirtualLayout((1,), "S6")
            layout[:] = h5py.VirtualSource(str(other), "video", (1,))
            file.create_virtual_dataset("video", layout)
    with pytest.raises(UnreadableFileError, match="in this file"):
        _images(Path(path))
