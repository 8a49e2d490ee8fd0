"""One crafted folder or file of each kind of benchmarks/faults/crafted.py; the fault list has more."""

import csv
import sys
from pathlib import Path

import pytest

from avdistill.methods.kd import KDConfig
from avdistill.training import train
from support.training_cases import config

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "faults"))

import crafted


@pytest.fixture(scope="module")
def good(taught, small_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    changes = {"method": KDConfig(), "teacher": "audio", "steps": 2, "save_every": 1, "eval_every": 1}
    run = train(config(taught.folder, folder / "run", **changes), stop_after=1)
    videos, annotations = small_set
    with (folder / "list.csv").open("w", newline="") as file:
        rows = [(each.path, "|".join(each.labels), each.split) for each in annotations]
        csv.writer(file).writerows([("path", "labels", "split"), *rows])
    return crafted.Good(taught.folder, run, folder / "list.csv", videos)


def test_crafted_folders_end_in_a_line(good, tmp_path):
    assert crafted.faults_of(good, tmp_path, range(len(crafted.KINDS))) == []


def test_the_checks_can_fail(tmp_path):
    case = crafted.Case("no verb", ("--version",))
    assert crafted.run_case(case, tmp_path / "log")[0] == 0
    assert crafted.run_case(crafted.Case("a traceback", (["unhashable"],)), tmp_path / "log")[0] == 99
    assert "Traceback" in (tmp_path / "log").read_text()
