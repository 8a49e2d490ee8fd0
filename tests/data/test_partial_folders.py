"""`<out>.partial` may hold hours of an interrupted preparation: nothing else removes it or writes into it."""

import shutil

import pytest
import torch

from avdistill.application.export import export
from avdistill.cli import main
from avdistill.data.conditions import Condition, apply_condition
from avdistill.data.files import open_locked
from avdistill.data.preparation import PrepareConfig, prepare
from avdistill.data.store import Store, StoreError, partial_folder
from avdistill.models import build_model
from avdistill.models.weights import save_student
from avdistill.types import SoundView, StudentDescription

CONFIG = PrepareConfig(fps=10, short_side=32)
CHANGED = Condition(unrelated=0.4, shifted=0.2)


class Killed(BaseException):
    pass


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def interrupted(small_set, tmp_path):
    """Where a store was being prepared."""

    def on_clip(done, total):
        if done == 5:
            raise Killed

    folder, annotations = small_set
    with pytest.raises(Killed):
        prepare(annotations, folder, tmp_path / "big", CONFIG, on_clip=on_clip)
    return tmp_path / "big"


def assert_it_goes_on(interrupted, small_set, prepared):
    read = []
    store = prepare(small_set[1], small_set[0], interrupted, CONFIG, on_clip=lambda done, total: read.append(done))
    assert store.checksum == Store(prepared).checksum
    assert len(read) == len(store) - 5


def test_a_condition_leaves_an_interrupted_preparation_alone(interrupted, small_set, prepared, many_clips, capsys):
    before = contents(partial_folder(interrupted))
    assert main(["condition", str(many_clips.folder), "unrelated=0.4", "--out", str(interrupted)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"avdistill: {partial_folder(interrupted)}: ")
    assert "interrupted `prepare`" in line
    assert contents(partial_folder(interrupted)) == before
    assert_it_goes_on(interrupted, small_set, prepared)


def test_a_condition_keeps_out_where_another_process_is(many_clips, tmp_path):
    partial = partial_folder(tmp_path / "made")
    partial.mkdir()
    (partial / "clips.parquet").write_bytes(b"theirs")
    with open_locked(partial), pytest.raises(StoreError, match="another process") as error:
        apply_condition(many_clips, Condition(unrelated=0.4), tmp_path / "made")
    assert len(str(error.value).splitlines()) == 1
    assert (partial / "clips.parquet").read_bytes() == b"theirs"


def interrupt_condition(store, out, monkeypatch):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("avdistill.data.conditions.put_in_place", killed)
        with pytest.raises(Killed):
            apply_condition(store, CHANGED, out)
    assert (partial_folder(out) / "store.json").is_file()


def test_an_interrupted_condition_is_made_anew(many_clips, tmp_path, monkeypatch):
    out = tmp_path / "made"
    interrupt_condition(many_clips, out, monkeypatch)
    made = apply_condition(many_clips, CHANGED, out)
    assert made.verify() == many_clips.verify() == []
    assert made.checksum == apply_condition(many_clips, CHANGED, tmp_path / "again").checksum
    assert not partial_folder(out).exists()


def test_a_preparation_writes_into_no_links_of_an_interrupted_condition(
    many_clips, small_set, prepared, tmp_path, monkeypatch
):
    interrupt_condition(many_clips, tmp_path / "made", monkeypatch)
    store = prepare(small_set[1], small_set[0], tmp_path / "made", CONFIG)
    assert store.checksum == Store(prepared).checksum
    assert many_clips.verify() == []


def test_an_export_leaves_an_interrupted_preparation_alone(interrupted, small_set, prepared, tmp_path):
    torch.manual_seed(0)
    student = build_model("logmel_cnn", 2, {"width": 8})
    student(0.1 * torch.randn(4, 4800))
    (tmp_path / "run" / "best").mkdir(parents=True)
    view = SoundView(seconds=0.3)
    description = StudentDescription("logmel_cnn", ("a", "b"), view, 10.0, 16000, options={"width": 8})
    save_student(tmp_path / "run" / "best", student, description)
    before = contents(partial_folder(interrupted))
    export(tmp_path / "run", interrupted, format="safetensors")
    assert contents(partial_folder(interrupted)) == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "big", "big.partial"}
    shutil.rmtree(interrupted)
    assert_it_goes_on(interrupted, small_set, prepared)
