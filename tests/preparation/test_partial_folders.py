"""`<out>.partial` may hold hours of an interrupted preparation: nothing else removes it or writes into it."""

import shutil

import pytest
import torch

from avdistill.cli import main
from avdistill.corruption import Corruption, corrupt
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import staging_dir
from avdistill.errors import DatasetError
from avdistill.fsio import open_lock
from avdistill.inference.export import export
from avdistill.inputs import AudioInput
from avdistill.models.checkpoint import save_student
from avdistill.models.registry import build_model
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.types import StudentConfig
from support.folders import contents

CONFIG = PrepareConfig(fps=10, short_side=32)
CHANGED = Corruption(mismatched=0.4, time_shifted=0.2)


class Killed(BaseException):
    pass


@pytest.fixture
def interrupted(small_set, tmp_path):
    """Where a dataset was being prepared."""

    def on_progress(progress):
        if progress.done == 5:
            raise Killed

    folder, annotations = small_set
    with pytest.raises(Killed):
        prepare(annotations, folder, tmp_path / "big", CONFIG, on_progress=on_progress)
    return tmp_path / "big"


def assert_it_goes_on(interrupted, small_set, prepared):
    read = []
    dataset = prepare(small_set[1], small_set[0], interrupted, CONFIG, on_progress=lambda p: read.append(p.done))
    assert dataset.checksum == ClipDataset(prepared).checksum
    assert len(read) == len(dataset) - 5


def test_a_corruption_leaves_an_interrupted_preparation_alone(interrupted, small_set, prepared, many_clips, capsys):
    before = contents(staging_dir(interrupted))
    assert main(["corrupt", str(many_clips.folder), "mismatched=0.4", "--out", str(interrupted)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"avdistill: {staging_dir(interrupted)}: ")
    assert "interrupted `prepare`" in line
    assert contents(staging_dir(interrupted)) == before
    assert_it_goes_on(interrupted, small_set, prepared)


def test_a_corruption_keeps_out_where_another_process_is(many_clips, tmp_path):
    partial = staging_dir(tmp_path / "made")
    partial.mkdir()
    (partial / "clips.parquet").write_bytes(b"theirs")
    with open_lock(partial), pytest.raises(DatasetError, match="another process") as error:
        corrupt(many_clips, Corruption(mismatched=0.4), tmp_path / "made")
    assert len(str(error.value).splitlines()) == 1
    assert (partial / "clips.parquet").read_bytes() == b"theirs"


def interrupt_corruption(dataset, out, monkeypatch):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("avdistill.dataset.staging.commit", killed)
        with pytest.raises(Killed):
            corrupt(dataset, CHANGED, out)
    assert (staging_dir(out) / "dataset.json").is_file()


def test_an_interrupted_corruption_is_made_anew(many_clips, tmp_path, monkeypatch):
    out = tmp_path / "made"
    interrupt_corruption(many_clips, out, monkeypatch)
    made = corrupt(many_clips, CHANGED, out)
    assert made.verify() == many_clips.verify() == []
    assert made.checksum == corrupt(many_clips, CHANGED, tmp_path / "again").checksum
    assert not staging_dir(out).exists()


def test_a_preparation_writes_into_no_links_of_an_interrupted_corruption(
    many_clips, small_set, prepared, tmp_path, monkeypatch
):
    interrupt_corruption(many_clips, tmp_path / "made", monkeypatch)
    dataset = prepare(small_set[1], small_set[0], tmp_path / "made", CONFIG)
    assert dataset.checksum == ClipDataset(prepared).checksum
    assert many_clips.verify() == []


def test_an_export_leaves_an_interrupted_preparation_alone(interrupted, small_set, prepared, tmp_path):
    torch.manual_seed(0)
    student = build_model("logmel_cnn", 2, {"width": 8})
    student(0.1 * torch.randn(4, 4800))
    (tmp_path / "run" / "best").mkdir(parents=True)
    view = AudioInput(seconds=0.3)
    description = StudentConfig("logmel_cnn", ("a", "b"), view, 10.0, 16000, options={"width": 8})
    save_student(tmp_path / "run" / "best", student, description)
    before = contents(staging_dir(interrupted))
    export(tmp_path / "run", interrupted, format="safetensors")
    assert contents(staging_dir(interrupted)) == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "big", "big.partial"}
    shutil.rmtree(interrupted)
    assert_it_goes_on(interrupted, small_set, prepared)
