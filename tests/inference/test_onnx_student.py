"""An exported student on files without PyTorch, and in int8: as accurate as it says, quantized by training clips."""

import json
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
from avdistill.dataset.windows import evaluation_window, spaced_starts
from avdistill.errors import CheckpointError, ConfigError, DatasetError, ExportError, MediaError
from avdistill.inference import export as export_module
from avdistill.inference.export import export
from avdistill.inference.onnx_student import OnnxStudent
from avdistill.inference.quantization import before_weights
from avdistill.inputs import AudioInput, StudentConfig, VideoInput
from avdistill.models.checkpoint import load_student, save_student
from avdistill.models.registry import build_model

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

CLASSES = ("class_0", "class_1", "class_2")
VIDEO = StudentConfig("shifted_frames", CLASSES, VideoInput(frames=4, size=(24, 32)), 10.0, 16000, options={"width": 8})
AUDIO = StudentConfig("logmel_cnn", CLASSES, AudioInput(seconds=0.3), 10.0, 16000, options={"width": 8})
WITHOUT_PYTORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "scipy", "pyarrow", "safetensors", "sklearn", "matplotlib"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from avdistill.cli import main

sys.exit(main(sys.argv[1:]))
"""


def write_run(folder: Path, config: StudentConfig) -> Path:
    """A run folder with a student of random weights whose logits differ between inputs."""
    torch.manual_seed(0)
    student = build_model(config.model, len(config.classes), config.options)
    inputs = config.view.random_inputs(4, config.sample_rate_hz, np.random.default_rng(1))
    with torch.no_grad():
        for _ in range(20):
            student(config.view.network_input(inputs))  # in training mode: moves the running statistics
        student.classifier.weight *= 30
    (folder / "best").mkdir(parents=True)
    save_student(folder / "best", student, config)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A run and its export."""
    folder = tmp_path_factory.mktemp("video")
    export(write_run(folder / "run", VIDEO), folder / "export")
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    export(write_run(folder / "run", replace(AUDIO, multi_label=True)), folder / "export")
    return folder


def copy_export(folder):
    """A stand-in for the exporter, which takes seconds: the files are there already."""

    def write_onnx(network, config, out):
        for name in ("model.onnx", "config.json"):
            shutil.copy(folder / "export" / name, out)
        return export_module._onnx_runner(folder / "export")

    return write_onnx


@pytest.fixture(scope="module")
def int8(video, prepared):
    """The same video student in int8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "_write_onnx", copy_export(video))
        return video / "int8", export(video / "run", video / "int8", clips=ClipDataset(prepared), int8=True)


def assert_as_pytorch(folder, file, **options):
    expected = avdistill.Student.from_pretrained(folder / "run", "cpu").predict(file, **options)
    found = avdistill.OnnxStudent.from_exported(folder / "export").predict(file, **options)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    np.testing.assert_allclose(found.embedding, expected.embedding, atol=1e-4)
    assert [(s.label, s.start_seconds, s.end_seconds) for s in found.segments] == [
        (s.label, s.start_seconds, s.end_seconds) for s in expected.segments
    ]
    assert (found.windows, found.label) == (expected.windows, expected.label)


@pytest.mark.parametrize("options", [{}, {"windows": 2, "batch_size": 1}])
def test_an_exported_student_labels_a_file_as_pytorch_does(video, audio, small_set, options):
    file = small_set[0] / "test_1.mp4"
    assert_as_pytorch(video, file, **options)
    assert_as_pytorch(audio, file, **options)


def test_an_exported_audio_student_takes_any_number_of_inputs(audio):
    report = json.loads((audio / "export" / "preprocessing.json").read_text())
    assert report["parity"]["inputs"] == 4
    network, _ = load_student(audio / "run")
    exported, rng = OnnxStudent.from_exported(audio / "export"), np.random.default_rng(5)
    for count in (1, 3):
        inputs = (0.1 * rng.standard_normal((count, 4800))).astype(np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(inputs))
        for ours, theirs in zip((expected.embedding, expected.logits), exported.run(inputs), strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_predict_from_an_export_needs_no_pytorch(video, small_set, tmp_path):
    """In a process that has no PyTorch, nor anything but numpy, onnxruntime, av, tyro and rich."""
    file = small_set[0] / "test_1.mp4"
    folder = shutil.copytree(video / "export", tmp_path / "export")
    words = [sys.executable, "-c", WITHOUT_PYTORCH, "predict", str(folder), str(file), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = avdistill.Student.from_pretrained(video / "run", "cpu").predict(file)
    found = json.loads(done.stdout)
    assert found["label"] == expected.label
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-4)
    assert len(found["segments"]) == len(expected.segments)
    words[4] = str(video / "run")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode != 0  # PyTorch was really absent
    assert "torch" in done.stderr


def test_the_reading_of_files_can_be_set(video):
    student = OnnxStudent.from_exported(video / "export", size=(24, 32), region="whole", threads=1)
    expected = avdistill.Student.from_pretrained(video / "run", "cpu", size=(24, 32), region="whole")
    assert (student.reading, student.config) == (expected.reading, expected.config)
    assert student.session.get_session_options().intra_op_num_threads == 1


def test_what_is_no_export_is_refused_in_a_line(video, small_set, tmp_path, capsys):
    def changed(name, content):
        folder = shutil.copytree(video / "export", tmp_path / str(len(list(tmp_path.iterdir()))))
        (folder / name).write_bytes(content)
        return folder

    config = json.loads((video / "export" / "config.json").read_text())
    other_size = config | {"view": config["view"] | {"size": [24, 33]}}
    cases = [
        (changed("model.onnx", b"no model"), "model.onnx"),
        (changed("config.json", b"{}"), "model: missing"),
        (changed("config.json", json.dumps(other_size).encode()), r"expected an input 'inputs' of \(B, 4, 24, 33, 3\)"),
        (tmp_path, r"no exported student here \(model.onnx is missing\)"),
    ]
    for folder, message in cases:
        with pytest.raises(CheckpointError, match=message) as caught:
            OnnxStudent.from_exported(folder)
        assert "\n" not in str(caught.value)
    assert main(["predict", str(cases[0][0]), str(small_set[0] / "test_1.mp4")]) == 1
    assert capsys.readouterr().err.startswith("avdistill: ")
    with pytest.raises(MediaError, match="empty"):
        OnnxStudent.from_exported(video / "export").predict(write_empty(tmp_path / "empty.mp4"))


def write_empty(path):
    path.write_bytes(b"no video")
    return path


def windows_of(dataset, clips, view):
    found = []
    for clip in clips:
        frames = dataset.frames(int(clip))
        found.append(evaluation_window(frames, view, 16000, spaced_starts(len(frames), view.frames, 1)[0]))
    return torch.stack(found).numpy()


def test_int8_is_compared_with_float32_on_clips_that_did_not_set_its_ranges(video, int8, prepared):
    folder, report = int8
    assert json.loads((folder / "preprocessing.json").read_text())["int8"] == report["int8"]
    dataset = ClipDataset(prepared)
    clips = np.flatnonzero((dataset.columns["split"] == "train") & dataset.columns["has_video"])
    told = report["int8"]
    assert (told["calibration_clips"], told["clips"]) == (-(-len(clips) // 2), len(clips) // 2)
    assert told["split"] == "train"
    windows = windows_of(dataset, clips[1::2], VIDEO.view)
    before, after = (OnnxStudent.from_exported(each).run(windows)[1] for each in (video / "export", folder))
    assert told["same_label"] == (before.argmax(1) == after.argmax(1)).mean() >= 0.9
    assert told["mean_difference_of_logits"] == pytest.approx(np.abs(before - after).mean(), rel=1e-3)
    assert 0 < told["mean_difference_of_logits"] < 0.1 * before.std()
    assert report["parity"]["largest_difference"]["logits"] <= 1e-4  # of float32, before


def test_int8_has_weights_of_7_bits_and_leaves_the_normalization_in_float32(int8):
    model = onnx.load(int8[0] / "model.onnx")
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    weights = [each for each in arrays.values() if each.dtype == np.int8 and each.ndim == 4]
    assert len(weights) == 10  # the network's convolutions
    assert all(each.min() >= -64 and each.max() <= 64 for each in weights)
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        inputs = [made_by[name].op_type for name in node.input if name in made_by]
        if node.op_type == "Conv":
            assert set(inputs) == {"DequantizeLinear"}
        elif node.op_type == "Mul":
            assert "DequantizeLinear" not in inputs
    assert (int8[0] / "model.onnx").stat().st_size < 0.6 * (int8[0].parent / "export" / "model.onnx").stat().st_size


def test_the_layers_that_stay_in_float32_are_those_before_the_first_weights():
    def node(name, inputs, output):
        return onnx.helper.make_node("Add", inputs, [output], name=name)

    nodes = [
        node("a", ["x", "c"], "1"),
        node("b", ["1", "w"], "2"),
        node("d", ["x", "1"], "3"),
        node("e", ["3", "2"], "4"),
    ]
    assert before_weights(onnx.helper.make_graph(nodes, "graph", [], []), {"w"}) == ["a", "d"]


def test_int8_of_audio_and_the_verb(audio, prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export_module, "_write_onnx", copy_export(audio))
    words = ["export", str(audio / "run"), "--out", str(tmp_path / "int8"), "--int8", "--clips", str(prepared)]
    assert main(words) == 0
    assert "int8: the same label as float32 for" in capsys.readouterr().out
    model = onnx.load(tmp_path / "int8" / "model.onnx")
    float_ops = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "Log", "Conv"} <= float_ops
    assert main(["predict", str(tmp_path / "int8"), str(tmp_path / "absent.mp4")]) == 1


def test_int8_that_would_change_labels_is_refused(video, prepared, tmp_path, monkeypatch):
    def negate(model, parameters, windows):
        found = onnx.load(model)
        gemm = next(node for node in found.graph.node if node.op_type == "Gemm")
        next(each for each in gemm.attribute if each.name == "alpha").f = -1.0
        onnx.save(found, model)

    monkeypatch.setattr(export_module, "_write_onnx", copy_export(video))
    monkeypatch.setattr(export_module, "quantize", negate)
    with pytest.raises(ExportError, match=r"int8 keeps the label of \d+% of \d+ clips, less than 90%; export float32"):
        export(video / "run", tmp_path / "out", clips=ClipDataset(prepared), int8=True)
    with pytest.raises(DatasetError, match="other"):
        export(video / "run", tmp_path / "out", clips=ClipDataset(prepared), int8=True, split="other")
    for wrong in ({"format": "safetensors", "clips": ClipDataset(prepared)}, {}):
        with pytest.raises(ConfigError, match="int8: expected format onnx, and a dataset"):
            export(video / "run", tmp_path / "out", int8=True, **wrong)
    assert list(tmp_path.iterdir()) == []
