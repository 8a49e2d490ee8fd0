"""A run or config from somebody else names a Python file: nothing of it is run before it is hashed and vouched for."""

import hashlib
import json
import py_compile
import shutil

import pytest

from avdistill.cli import main
from avdistill.errors import ConfigError, RunError
from avdistill.inputs import VideoInput
from avdistill.methods import CustomMethodConfig, method_class, parse_method
from avdistill.methods.kd import KDConfig
from avdistill.training import ModelConfig, TrainConfig, resume, train

SOURCE = """
from pathlib import Path
Path({marker!r}).touch()
from avdistill.methods.kd import KD, KDConfig

class Mine(KD):
    config_class = KDConfig
"""


@pytest.fixture(scope="module")
def trained(taught, tmp_path_factory):
    """A run of a built-in method, stopped half-way."""
    run = tmp_path_factory.mktemp("trained") / "run"
    student = ModelConfig("shifted_frames", VideoInput(frames=4, size=(16, 24)), {"width": 8, "embedding_dim": 16})
    config = TrainConfig(taught.folder, run, student, KDConfig(), "audio", steps=2, batch_size=6, eval_every=1)
    return train(config, stop_after=1)


@pytest.fixture
def planted(trained, tmp_path):
    """The run as somebody else could send it: its config names a file that leaves a marker when it is run."""
    run, file, marker = tmp_path / "run", tmp_path / "mine.py", tmp_path / "marker"
    shutil.copytree(trained, run)
    file.write_text(SOURCE.format(marker=str(marker)))
    config, data = (json.loads((run / name).read_text()) for name in ("config.json", "data.json"))
    config["method"] = {"name": "custom", "source": f"{file}:Mine"}
    config["out"] = str(tmp_path / "another")
    data["method_file"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (run / "config.json").write_text(json.dumps(config))
    (run / "data.json").write_text(json.dumps(data))
    return run, file, marker


def verbs(run, dataset):
    return {
        "audit": ["audit", str(run), str(dataset)],
        "resume": ["resume", str(run)],
        "train": ["train", "--config", str(run / "config.json")],
    }


@pytest.mark.parametrize("verb", ["audit", "resume", "train"])
def test_the_file_runs_only_with_the_option(verb, planted, taught, capsys):
    run, _, marker = planted
    words = verbs(run, taught.folder)[verb]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "expected --trust-method" in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not marker.exists()
    assert main([*words, "--trust-method"]) == 0, capsys.readouterr().err
    assert marker.exists()


@pytest.mark.parametrize("verb", ["audit", "resume"])
def test_another_file_than_the_recorded_one_is_not_run_even_so(verb, planted, taught, capsys):
    run, file, marker = planted
    file.write_text(file.read_text() + "\n# changed\n")
    assert main([*verbs(run, taught.folder)[verb], "--trust-method"]) == 1
    assert "the file of its method has changed" in capsys.readouterr().err
    assert not marker.exists()


def test_a_run_that_was_started_with_a_builtin_method_does_not_turn_to_a_file(planted):
    run, _, marker = planted
    data = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(data | {"method_file": None}))
    with pytest.raises(RunError, match="the file of its method has changed"):
        resume(run, trust_method=True)
    assert not marker.exists()


def test_a_config_in_python_is_not_enough(planted):
    _, file, marker = planted
    with pytest.raises(ConfigError, match="expected --trust-method"):
        method_class(CustomMethodConfig(f"{file}:Mine"))
    assert not marker.exists()


def test_a_compiled_file_beside_the_source_is_not_run(tmp_path):
    """Python would take it where size and time of the source agree: then other bytes would run than were hashed."""
    file, marker = tmp_path / "mine.py", tmp_path / "marker"
    plain = SOURCE.replace("Path({marker!r}).touch()", "").format(marker="")
    evil = SOURCE.format(marker=str(marker))
    file.write_text(evil)
    py_compile.compile(str(file), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    file.write_text(plain)
    assert list((tmp_path / "__pycache__").iterdir())
    parse_method(f"{file}:Mine")
    assert not marker.exists()
