"""The fault list stays runnable: its quick faults, as a person runs them."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "faults" / "run.py"


def faults(python, *arguments):
    return python.run([sys.executable, SCRIPT, *arguments], text=True)


def test_quick_faults_hold(tmp_path, warm_python):
    before = {file: file.read_bytes() for file in (ROOT / "results").glob("*.json")}
    done = faults(warm_python, "--only", "names,read_only", "--work", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["held", "names"], ["held", "read_only"]]
    assert before == {file: file.read_bytes() for file in (ROOT / "results").glob("*.json")}


def test_unknown_fault_is_a_wrong_call(warm_python):
    done = faults(warm_python, "--only", "earthquake")
    assert done.returncode == 2
    assert "no fault earthquake; faults: killed_prepare" in done.stderr


def test_a_broken_promise_is_told(tmp_path, warm_python):
    """The checks can fail: a folder of clips that holds none is no set of mutated files."""
    (tmp_path / "none").mkdir()
    done = faults(warm_python, "--only", "mutated", "--clips", str(tmp_path / "none"), "--work", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout.startswith("broken   mutated")


def test_the_results_are_of_the_whole_list(warm_python):
    told = json.loads((ROOT / "results" / "faults.json").read_text())
    listed = faults(warm_python, "--only", "?").stderr.rpartition("faults: ")[2].strip().split(", ")
    assert [row["name"] for row in told["faults"]] == listed
    assert {row["promise"] for row in told["faults"]} <= {"held", "broken", "not run"}
