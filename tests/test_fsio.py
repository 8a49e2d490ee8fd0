"""Folders that are made through a symbolic link, files' modes, and devices without double precision."""

import os
import stat

import pytest
import torch

from avdistill import distributed
from avdistill.analysis.audit.audit import audit, write_audit
from avdistill.corruption import corrupt, parse_corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import DatasetError, RunError
from avdistill.fsio import is_vacant
from avdistill.methods.robust import RobustConfig
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.training import resume, train
from support.training_cases import config, state


@pytest.fixture(params=["an empty folder", "nothing"])
def link(request, tmp_path):
    target = tmp_path / "other disk" / "target"
    target.parent.mkdir()
    if request.param == "an empty folder":
        target.mkdir()
    (tmp_path / "link").symlink_to(target)
    return tmp_path / "link"


def test_a_run_through_a_link(taught, link):
    run = train(config(taught.folder, link, steps=2))
    assert link.is_symlink()
    assert run == link.resolve()
    assert state(link)[1]["progress"]["step"] == 2
    assert resume(link) == link
    with pytest.raises(RunError, match="already there"):
        train(config(taught.folder, link, steps=2))


def test_datasets_through_a_link(small_set, prepared, link):
    videos, annotations = small_set
    for _ in range(2):  # the second finds it finished
        dataset = prepare(annotations, videos, link, PrepareConfig(fps=10, short_side=32), workers=1)
        assert link.is_symlink()
        assert dataset.checksum == ClipDataset(prepared).checksum
    assert [path.name for path in link.resolve().parent.iterdir()] == ["target"]


def test_a_corruption_and_an_audit_through_a_link(taught, link, tmp_path):
    made = corrupt(taught, parse_corruption("mismatched=0.4"), link)
    assert link.is_symlink()
    assert len(made) == len(taught)
    result = audit(train(config(taught.folder, tmp_path / "run", steps=2)), taught, teacher="audio")
    table = tmp_path / "table"
    (tmp_path / "tables").mkdir()
    table.symlink_to(tmp_path / "tables")
    write_audit(table, result)
    assert (tmp_path / "tables" / "clips.csv").is_file()


def test_what_holds_something_is_not_vacant(small_set, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    assert is_vacant(folder)
    folder.mkdir()
    assert is_vacant(folder)
    monkeypatch.chdir(folder)
    assert not is_vacant(folder)
    monkeypatch.chdir(tmp_path)
    (folder / "file").touch()
    assert not is_vacant(folder)
    assert not is_vacant(folder / "file")
    with pytest.raises(DatasetError, match="no dataset here"):
        prepare(small_set[1], small_set[0], folder, PrepareConfig(fps=10, short_side=32), workers=1)


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_files_of_a_run_have_the_mode_of_the_umask(taught, tmp_path, umask):
    before = os.umask(umask)
    try:
        run = train(config(taught.folder, tmp_path / "run", steps=2))
    finally:
        os.umask(before)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"model.safetensors", "helpers.safetensors", "state.pt", "config.json"} <= {path.name for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_a_device_without_float64(taught, tmp_path, monkeypatch):
    """As on Apple's MPS: no tensor of the method is float64 there, and the run continues where there is float64."""
    assert not distributed.supports_float64(torch.device("mps"))
    kind = {"method": RobustConfig(), "teacher": "audio", "val_fraction": 0.0}
    whole = train(config(taught.folder, tmp_path / "whole", **kind))
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "supports_float64", lambda device: False)
        patch.setattr(torch.Tensor, "double", None)
        run = train(config(taught.folder, tmp_path / "run", **kind), stop_after=5)
    counts = {k: v for k, v in state(run)[0].items() if k.endswith("_counts")}
    assert {v.dtype for v in counts.values()} == {torch.float32}
    resume(run)
    for name, value in state(whole)[0].items():
        torch.testing.assert_close(state(run)[0][name].to(value.dtype), value, rtol=1e-4, atol=1e-5)
