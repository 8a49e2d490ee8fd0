"""docs/custom_method.md: the file on the page is copied out and runs with the page's commands."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from avdistill.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "custom_method.md").read_text()
SMALL = ["student.view.frames 4", "student.view.size 16 24", "batch-size 6", "val-fraction 0.3"]


def small(prefix, steps):
    return shlex.split(" ".join(f"--{prefix}{option}" for option in [*SMALL, f"steps {steps}"]))


def test_the_page_is_what_runs(many_clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    many_clips.folder.rename(tmp_path / "dataset")
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "cosine.py").write_text(source)
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith(("from", "import"))]
    assert len(lines) <= 30
    train, compare = (shlex.split(line) for line in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)[0].splitlines())
    assert main([*train[1:], *small("", 4)]) == 0, capsys.readouterr().err
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert set(metrics[0]["losses"]) == {"classification", "cosine"}
    assert main(["audit", "run", "dataset"]) == 0, capsys.readouterr().err
    told = json.loads((tmp_path / "run" / "audit-train" / "audit.json").read_text())
    assert Path(told["settings"]["method"]) == tmp_path / "cosine.py:Cosine"
    assert main([*compare[1:], "--threads", "1", *small("base.", 2)]) == 0, capsys.readouterr().err
    table = json.loads((tmp_path / "study" / "results.json").read_text())["table"]
    assert {line["method"] for line in table} == {"supervised", "cosine.py:Cosine", "mnf_csc"}


def test_a_run_of_an_own_method_resumes_from_anywhere_exactly(many_clips, tmp_path, monkeypatch, capsys):
    from avdistill.inputs import VideoInput
    from avdistill.methods import parse_method
    from avdistill.training import ModelConfig, TrainConfig, resume, train

    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "cosine.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    method = parse_method("cosine.py:Cosine:weight=2")
    student = ModelConfig("shifted_frames", VideoInput(frames=4, size=(16, 24)), {"width": 8, "embedding_dim": 16})
    configs = [
        TrainConfig(many_clips.folder, tmp_path / name, student, method, "audio", steps=6, batch_size=6)
        for name in ("whole", "halves")
    ]
    train(configs[0])
    train(configs[1], stop_after=3)
    monkeypatch.chdir("/")
    resume(tmp_path / "halves")
    for name in ("last/model.safetensors", "last/helpers.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes()
    (tmp_path / "cosine.py").write_text(source + "\n# another\n")
    for words in (["resume", str(tmp_path / "halves")], ["audit", str(tmp_path / "halves"), str(many_clips.folder)]):
        assert main(words) == 1
        assert "the file of its method has changed" in capsys.readouterr().err


def test_helpers_that_were_not_saved_are_not_made_up(many_clips, tmp_path, monkeypatch):
    """A method that got a layer: random weights would pass for trained ones."""
    from avdistill.errors import CheckpointError
    from avdistill.inputs import VideoInput
    from avdistill.methods.kd import KD, KDConfig
    from avdistill.training import ModelConfig, TrainConfig, resume, train

    student = ModelConfig("shifted_frames", VideoInput(frames=4, size=(16, 24)), {"width": 8, "embedding_dim": 16})
    begun = TrainConfig(many_clips.folder, tmp_path / "run", student, KDConfig(), "audio", steps=4, batch_size=6)
    train(begun, stop_after=2)
    build = KD.__init__

    def with_a_layer(self, *arguments):
        build(self, *arguments)
        self.register_buffer("extra", torch.zeros(3))

    monkeypatch.setattr(KD, "__init__", with_a_layer)
    with pytest.raises(CheckpointError, match="it lacks extra"):
        resume(tmp_path / "run")
