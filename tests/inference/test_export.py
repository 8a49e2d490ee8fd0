"""An exported student: agrees with the run on real clips, needs nothing but its folder, and is not left half right."""

import contextlib
import hashlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import avdistill
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.windows import evaluation_window
from avdistill.errors import CheckpointError, DatasetError, ExportError, TeacherError
from avdistill.inference import export as export_module
from avdistill.inference.export import export
from avdistill.inputs import AudioInput, VideoInput, normalize_frames
from avdistill.media import read_clip
from avdistill.models.checkpoint import load_student, save_student
from avdistill.models.registry import build_model
from avdistill.types import StudentConfig

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "use.md"
CLASSES = ("class_0", "class_1", "class_2")
VIDEO = StudentConfig("shifted_frames", CLASSES, VideoInput(frames=4, size=(24, 32)), 10.0, 16000, options={"width": 8})
AUDIO = StudentConfig("logmel_cnn", CLASSES, AudioInput(seconds=0.3), 10.0, 16000, options={"width": 8})


def write_run(folder: Path, description: StudentConfig) -> Path:
    """A run folder whose student has random weights, and statistics as after some batches of training."""
    torch.manual_seed(0)
    student = build_model(description.model, len(description.classes), description.options)
    if isinstance(description.view, VideoInput):
        inputs = torch.randn(4, 3, description.view.frames, *description.view.size)
    else:
        inputs = 0.1 * torch.randn(4, round(description.view.seconds * description.sample_rate_hz))
    with torch.no_grad():
        for _ in range(20):
            student(inputs)  # in training mode: moves the running statistics
    (folder / "best").mkdir(parents=True)
    save_student(folder / "best", student, description)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "sees", VIDEO)


@pytest.fixture(scope="module")
def page(run, small_set, tmp_path_factory):
    """A folder with what docs/use.md speaks of, after its commands."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(run, folder / "run")
    for name, clip in (("video.mp4", "test_2.mp4"), ("other.webm", "test_3.mp4")):
        shutil.copy(small_set[0] / clip, folder / name)
    (block,) = re.findall(r"```bash\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    with contextlib.chdir(folder):
        for line in block.splitlines():
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                assert main(shlex.split(line)[1:]) == 0
    assert "agrees with run on 4 inputs, 0 of them clips" in out.getvalue().splitlines()[0]
    assert err.getvalue() == ""  # what the exporter has to say is not for users
    return folder


@pytest.fixture(scope="module")
def exported(page, tmp_path_factory):
    """The ONNX export, alone in a folder elsewhere."""
    return Path(shutil.move(page / "export", tmp_path_factory.mktemp("elsewhere") / "export"))


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def answer_onnx(folder: Path, inputs: np.ndarray) -> list[np.ndarray]:
    told = json.loads((folder / "preprocessing.json").read_text())
    session = onnxruntime.InferenceSession(folder / told["file"])
    return session.run(["embedding", "logits"], {told["input"]["name"]: inputs})


def answer_run(run: Path, inputs: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    network, _ = load_student(run)
    with torch.no_grad():
        features = network(normalize_frames(inputs) if network.modality == "video" else inputs)
    return features.embedding.numpy(), features.logits.numpy()


@pytest.mark.parametrize(
    "description",
    [
        replace(VIDEO, model="stacked_frames", options={"frames": 4, "width": 16}),
        replace(VIDEO, model="tiny_r2plus1d", options={}),
        replace(VIDEO, model="torchvision:r3d_18", options={}),
    ],
    ids=lambda d: d.model,
)
def test_networks_export_and_take_any_number_of_inputs(description, tmp_path):
    run = write_run(tmp_path / "run", description)
    report = export(run, tmp_path / "export")
    assert report["parity"]["inputs"] == 4
    rng = np.random.default_rng(5)
    for count in (1, 3):
        inputs = rng.integers(0, 256, (count, 4, 24, 32, 3)).astype(np.uint8)
        expected = answer_run(run, torch.from_numpy(inputs))
        for ours, theirs in zip(expected, answer_onnx(tmp_path / "export", inputs), strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(theirs, ours, atol=1e-4)


def real_windows(files: list[Path], view: VideoInput) -> torch.Tensor:
    frames = [read_clip(file, fps=10.0, short_side=32).frames for file in files]
    return torch.stack([evaluation_window(clip, view, 16000, 0) for clip in frames])


def assert_both_formats_agree(run: Path, exported: Path, files: list[Path], tmp_path: Path) -> None:
    assert len(files) == 20
    inputs = real_windows(files, VIDEO.view)
    expected = answer_run(run, inputs)
    assert expected[1].std(0).min() > 1e-3  # the clips differ
    export(run, tmp_path / "weights", format="safetensors")
    for answer in (answer_onnx(exported, inputs.numpy()), answer_run(tmp_path / "weights", inputs)):
        for ours, theirs in zip(expected, answer, strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def test_both_formats_agree_with_the_run_on_20_made_clips(run, exported, small_set, tmp_path):
    assert_both_formats_agree(run, exported, sorted(small_set[0].glob("t*.mp4"))[:20], tmp_path)


def test_both_formats_agree_with_the_run_on_20_real_clips(run, exported, development_data, tmp_path):
    assert_both_formats_agree(run, exported, sorted((development_data / "grid_s1").glob("*.mp4"))[:20], tmp_path)


def test_exported_weights_are_loaded_like_a_run(run, small_set, tmp_path):
    export(run, tmp_path / "export", format="safetensors")
    file = small_set[0] / "test_1.mp4"
    expected, found = (avdistill.Student.from_pretrained(folder).predict(file) for folder in (run, tmp_path / "export"))
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert {p.name for p in (tmp_path / "export").iterdir()} == {
        "model.safetensors", "config.json", "preprocessing.json",
    }  # fmt: skip


@pytest.mark.parametrize("file_format", ["onnx", "safetensors"])
def test_a_run_that_was_killed_while_a_better_student_took_its_place(run, exported, tmp_path, monkeypatch, file_format):
    def write_onnx(network, config, folder):  # the exporter takes seconds, and its file of this student is there
        for name in ("model.onnx", "config.json"):
            shutil.copy(exported / name, folder)
        return export_module._onnx_runner(folder)  # with which the network that was found is compared

    monkeypatch.setattr(export_module, "_write_onnx", write_onnx)
    killed = Path(shutil.copytree(run, tmp_path / "sees"))
    (killed / "best").rename(killed / "best.old")
    told, expected = (export(r, tmp_path / str(i), format=file_format) for i, r in enumerate((killed, run)))
    assert told == expected
    weights = (run / "best" / "model.safetensors").read_bytes()
    assert told["source"]["sha256"] == hashlib.sha256(weights).hexdigest()


def test_the_document_runs_as_written(page, run, capsys, monkeypatch):
    rows = (page / "segments.csv").read_text().splitlines()
    assert rows[0] == "file,start_seconds,end_seconds,label,probability"
    assert {row.split(",")[0] for row in rows[1:]} == {"video.mp4", "other.webm"}
    code = next(block for block in python_blocks() if "Student.from_pretrained" in block)
    monkeypatch.chdir(page)
    exec(code, {})
    assert capsys.readouterr().out.strip() == str(avdistill.Student.from_pretrained(run).predict("video.mp4"))


def test_the_document_feeds_the_exported_folder_without_avdistill(run, exported, small_set, tmp_path):
    """The page's numpy and onnxruntime, run where there is neither run nor dataset nor this library."""
    shutil.copytree(exported, tmp_path / "export")
    file = small_set[0] / "test_2.mp4"
    np.save(tmp_path / "frames.npy", read_clip(file, fps=10.0, size=(24, 32)).frames)
    code = next(block for block in python_blocks() if "onnxruntime" in block)
    assert "avdistill" not in code
    code += "import sys\nassert 'torch' not in sys.modules and 'avdistill' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    label, probability = done.stdout.split()
    expected = avdistill.Student.from_pretrained(run, size=(24, 32)).predict(file)
    assert label == expected.label
    assert float(probability) == pytest.approx(expected.probability, abs=1e-3)


def test_preprocessing_tells_all_that_is_needed(run, exported, tmp_path):
    told = json.loads((exported / "preprocessing.json").read_text())
    assert told["input"] == {"name": "inputs", "type": "uint8", "shape": ["B", 4, 24, 32, 3]}
    assert told["outputs"] == {"embedding": ["B", 128], "logits": ["B", 3]}
    assert (told["fps"], told["classes"], told["probabilities"]) == (10.0, list(CLASSES), "softmax")
    assert told["parity"]["largest_difference"]["logits"] <= told["parity"]["tolerance"] == 1e-4
    assert len(told["source"]["sha256"]) == 64
    assert told["source"]["run"] == "run"
    by_hand = export(run, tmp_path / "weights", format="safetensors")
    assert by_hand["input"] == {"name": "inputs", "type": "float32", "shape": ["B", 3, 4, 24, 32]}
    assert by_hand["normalization"]["done_by"] == "the caller"
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 4, 3)).astype(np.uint8)
    mean, std = (np.array(by_hand["normalization"][key]) for key in ("mean", "std"))
    expected = normalize_frames(torch.from_numpy(frames)).permute(0, 2, 3, 4, 1).numpy()
    np.testing.assert_allclose((frames / 255 - mean) / std, expected, atol=1e-5)
    heard = export(
        write_run(tmp_path / "hears", replace(AUDIO, multi_label=True)), tmp_path / "h", format="safetensors"
    )
    assert (heard["sample_rate_hz"], heard["seconds"], heard["probabilities"]) == (16000, 0.3, "sigmoid")


def test_a_view_that_cuts_without_scaling_is_described_as_it_is(prepared, tmp_path):
    """Frames of a clip, cut as the file says, are the window that the student is shown."""
    dataset, view = ClipDataset(prepared), replace(VIDEO.view, size=(19, 25), resize=False)
    folder = write_run(tmp_path / "run", replace(VIDEO, view=view, **dataset.video_reading))
    told = export(folder, tmp_path / "export", format="safetensors", clips=dataset)
    assert told["parity"]["clips"] > 0
    assert told["resize"].startswith("none")
    assert told["crop"] == "center; half a pixel to the top and the left"
    frames = dataset.frames(0)[:4]
    height, width = told["size"]
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    assert {(frames.shape[1] - height) % 2, (frames.shape[2] - width) % 2} == {1}
    shown = evaluation_window(dataset.frames(0), view, dataset.sample_rate_hz, 0).numpy()
    np.testing.assert_array_equal(shown, frames[:, top : top + height, left : left + width])
    large = write_run(tmp_path / "large", replace(VIDEO, view=replace(view, size=(300, 400))))
    with pytest.raises(DatasetError, match="hold no window of 300x400"):
        export(large, tmp_path / "other", format="safetensors", clips=dataset)


def test_an_export_that_differs_leaves_nothing(run, tmp_path, monkeypatch):
    def write_another(folder, student, description):
        with torch.no_grad():
            again = build_model(description.model, 3, description.options)
            again.load_state_dict(student.state_dict())
            again.classifier.bias[1] += 2e-4
        save_student(folder, again, description)

    monkeypatch.setattr(export_module, "save_student", write_another)
    with pytest.raises(ExportError, match=r"logits differs by 0\.0002 .* more than 0\.0001"):
        export(run, tmp_path / "export", format="safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_network_the_exporter_cannot_convert_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise torch.onnx.OnnxExporterError("many\nlines")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match=r"^shifted_frames cannot be exported as ONNX; safetensors .*$"):
        export(run, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said_in_a_line(run, prepared, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no trained network"):
        export(tmp_path, tmp_path / "export")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(FileExistsError, match="exists already"):
        export(run, tmp_path / "there")
    monkeypatch.setattr(export_module, "find_spec", lambda name: None if name == "onnxscript" else "there")
    with pytest.raises(ExportError, match=r"onnxscript must be there: install the extra 'onnx'"):
        export(run, tmp_path / "export")
    folder = write_run(tmp_path / "runs" / "deaf", replace(VIDEO, fps=4.0))
    with pytest.raises(TeacherError, match=r"expected fps 4\.0, at which the student was trained, found"):
        export(folder, tmp_path / "export", format="safetensors", clips=ClipDataset(prepared))
    assert {p.name for p in tmp_path.iterdir()} == {"there", "runs"}


def test_a_link_to_an_empty_folder_is_followed(run, tmp_path):
    (tmp_path / "disk" / "export").mkdir(parents=True)
    for name in ("export", "new"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
        export(run, tmp_path / name, format="safetensors")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "disk" / name / "model.safetensors").is_file()
    with pytest.raises(FileExistsError, match="exists already"):
        export(run, tmp_path / "export", format="safetensors")


def test_the_verb(run, prepared, tmp_path, capsys):
    words = ["export", str(run), "--out", str(tmp_path / "out"), "--format", "safetensors"]
    assert main([*words, "--clips", str(prepared), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["parity"]["inputs"], told["parity"]["clips"]) == (24, 20)
    assert main(words) == 1
    assert capsys.readouterr().err == f"avdistill: {tmp_path / 'out'}: exists already; name a new folder\n"
