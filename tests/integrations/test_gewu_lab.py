"""Files of the released implementation, made here in its form: checkpoints, HDF5 clips, embeddings, annotation.json."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR, StepLR

import avdistill
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import AnnotationError, CheckpointError, ConfigError, DatasetError, UnreadableFileError
from avdistill.fsio import file_checksum
from avdistill.integrations.gewu_lab.importer import import_checkpoint, import_clips, load_reference_checkpoint
from avdistill.models.checkpoint import load_student
from avdistill.models.noise_filter import NoiseFilter
from avdistill.models.r2plus1d import r2plus1d_xia2023
from avdistill.preparation.prepare import PrepareConfig
from support.features import feature_arrays
from support.golden_rule import FILTER_NAMES, GOLDEN, assert_golden, filter_inputs, ruled_weights, student_input

BACKBONE, FILTER = GOLDEN["backbone"][0], GOLDEN["mnf_csc"][0]
LABELS = ["Archery", "HandStandPushups", "Bowling"]
RELEASE_NAMES = {ours: theirs for theirs, ours in FILTER_NAMES.items()}


def stepped_adam():
    network = torch.nn.Linear(2, 1)
    adam = Adam(network.parameters(), lr=3e-4, weight_decay=5e-4)
    network(torch.ones(1, 2)).sum().backward()
    adam.step()
    return adam


def scheduler_of_torch_2():
    return MultiStepLR(stepped_adam(), [150])


def scheduler_of_torch_1():
    """What PyTorch 1.x pickled: counts of steps as integers, fewer settings in the groups, `verbose`."""
    adam = stepped_adam()
    known = ("params", "lr", "betas", "eps", "weight_decay", "amsgrad")
    adam.param_groups = [{**{k: group[k] for k in known}, "initial_lr": 3e-4} for group in adam.param_groups]
    adam.defaults = {k: adam.defaults[k] for k in known[1:]}
    for state in adam.state.values():
        state["step"] = 1
    scheduler = MultiStepLR.__new__(MultiStepLR)
    scheduler.__dict__ = {
        "milestones": Counter([150]), "gamma": 0.1, "optimizer": adam, "base_lrs": [3e-4], "last_epoch": 4,
        "_step_count": 5, "verbose": False, "_get_lr_called_within_step": False, "_last_lr": [3e-4],
    }  # fmt: skip
    return scheduler


def release_checkpoint(path, student, noise_filter, *, make_scheduler=scheduler_of_torch_1, zipped=True, **changed):
    """A file as the release's `save_checkpoint` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "epoch": 170,
        "state_dict": student,
        "audio_state_dict": noise_filter,
        "optimizer": stepped_adam().state_dict(),
        "scheduler": {"video_scheduler": make_scheduler(), "audio_scheduler": make_scheduler()},
    }
    torch.save(content | changed, path, _use_new_zipfile_serialization=zipped)
    return path


def golden_checkpoint(path, **options):
    student, noise_filter = (ruled_weights(case["spec"], case["seed"]) for case in (BACKBONE, FILTER))
    return release_checkpoint(path, student, noise_filter, **options)


def small_weights(classes, depth=18, width=16):
    """Weights of a student and a filter by the golden rule, under the release's names, with BatchNorm's counts."""

    def ruled(module, names):
        keys = {key: ".".join([names.get(key.split(".")[0], key.split(".")[0]), *key.split(".")[1:]]) for key in module}
        floats = [(keys[k], list(v.shape)) for k, v in module.items() if v.is_floating_point()]
        counts = {keys[k]: v for k, v in module.items() if not v.is_floating_point()}
        return ruled_weights(floats, 5) | counts

    student = r2plus1d_xia2023(classes, depth, width).state_dict()
    return ruled(student, {}), ruled(NoiseFilter(width, classes).state_dict(), RELEASE_NAMES)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("make_scheduler", [scheduler_of_torch_1, scheduler_of_torch_2])
def test_checkpoint_gives_the_outputs_of_the_release(tmp_path, make_scheduler, zipped):
    path = golden_checkpoint(tmp_path / "save_model.pth", make_scheduler=make_scheduler, zipped=zipped)
    if zipped:  # without our list PyTorch refuses it, and for these names
        assert set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) == {
            "torch.optim.lr_scheduler.MultiStepLR", "torch.optim.adam.Adam", "collections.defaultdict", "builtins.dict",
        }  # fmt: skip
    student, noise_filter = avdistill.load_reference_checkpoint(path)
    assert not student.training
    assert not noise_filter.training
    with torch.no_grad():
        features = student(student_input(BACKBONE))
        tokens, audio, _ = filter_inputs(FILTER)
        filtered = noise_filter(teacher=audio, tokens=tokens)
    assert_golden(features.embedding[:, :16], BACKBONE["feature_first16"])
    assert_golden(features.logits, BACKBONE["logits"])
    assert_golden(features.tokens.double().sum(), BACKBONE["map_sum"])
    expected = FILTER["results"]["eval"]
    assert_golden(filtered.gate, expected["gate"])
    assert_golden(filtered.embedding, expected["selected_audio"])
    assert_golden(filtered.guided, expected["selected_video"])
    assert_golden(filtered.logits, expected["p_sv"])


def test_depth_width_classes_and_the_prefix_of_data_parallel(tmp_path):
    student, noise_filter = ({f"module.{k}": v for k, v in w.items()} for w in small_weights(3, depth=34))
    loaded, loaded_filter = load_reference_checkpoint(release_checkpoint(tmp_path / "m.pth", student, noise_filter))
    assert [len(stage.blocks) for stage in (loaded.conv2, loaded.conv3, loaded.conv4, loaded.conv5)] == [2, 3, 5, 2]
    assert loaded.cls.weight.shape == loaded_filter.classifier.weight.shape == (3, 16)
    assert torch.equal(loaded.conv4.blocks[4].bn2.bias, student["module.conv4.blocks.4.bn2.bias"])
    assert torch.equal(loaded_filter.attention.in_proj_weight, noise_filter["module.attn.in_proj_weight"])


class Hostile:
    """Unpickled without a guard, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def step_scheduler():
    return StepLR(stepped_adam(), 3)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["scheduler", "state_dict", "epoch", "more"])
def test_nothing_of_a_hostile_checkpoint_runs(tmp_path, place, zipped):
    made = tmp_path / "made"
    path = golden_checkpoint(tmp_path / "evil.pth", zipped=zipped, **{place: Hostile(made)})
    with pytest.raises(
        CheckpointError, match=r"expected nothing but weights, .*, found posix\.mkdir; nothing was"
    ) as error:
        load_reference_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()  # it would have


def test_any_other_scheduler_is_refused_by_name(tmp_path):
    path = golden_checkpoint(tmp_path / "m.pth", make_scheduler=step_scheduler)
    with pytest.raises(CheckpointError, match=r"m\.pth: expected .*, found torch\.optim\.lr_scheduler\.StepLR;"):
        load_reference_checkpoint(path)
    assert MultiStepLR not in torch.serialization.get_safe_globals()


def without(weights, key):
    return {k: v for k, v in weights.items() if k != key}


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("state_dict", lambda w: without(w, "conv3.block1.bn2.bias"), "state_dict: conv3.block1.bn2.bias is missing"),
        ("state_dict", lambda w: without(w, "cls.weight"), "state_dict: cls.weight is missing"),
        ("state_dict", lambda w: w | {"fc.bias": w["cls.bias"]}, "state_dict: fc.bias belongs to no part of R2Plus1D"),
        ("state_dict", lambda w: w | {"cls.bias": torch.ones(4)}, r"cls.bias: expected the shape \(5,\), found \(4,\)"),
        ("state_dict", lambda w: w | {"cls.bias": 1.0}, "expected a tensor for 'cls.bias', found float"),
        ("state_dict", lambda w: w | {"cls.bias": torch.ones(5, device="meta")}, "expected a tensor for 'cls.bias'"),
        ("state_dict", lambda w: {}, "expected weights under 'state_dict'"),
        ("audio_state_dict", lambda w: None, "expected weights under 'audio_state_dict'"),
        ("audio_state_dict", lambda w: without(w, "attn.out_proj.bias"), "dict: attn.out_proj.bias is missing"),
        ("epoch", lambda _: "late", "expected 'epoch' as a whole number, found 'late'"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, part, change, told):
    weights = {
        "state_dict": ruled_weights(BACKBONE["spec"], 1),
        "audio_state_dict": ruled_weights(FILTER["spec"], 1),
        "epoch": 1,
    }
    path = golden_checkpoint(tmp_path / "m.pth", **{part: change(weights[part])})
    with pytest.raises(CheckpointError, match=told) as error:
        load_reference_checkpoint(path)
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_said_so(tmp_path):
    path = tmp_path / "m.pth"
    with pytest.raises(CheckpointError, match="No such file"):
        load_reference_checkpoint(path)
    whole = golden_checkpoint(tmp_path / "whole.pth").read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"m\.pth: not a checkpoint"):
            load_reference_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="expected a dictionary, found list"):
        load_reference_checkpoint(path)


def write_list(path, database, labels=LABELS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"labels": labels, "database": database}))
    return path


def test_imported_run(tmp_path):
    annotation = write_list(tmp_path / "annotation.json", {"a": {"subset": "training", "label": "Archery"}})
    checkpoint = release_checkpoint(tmp_path / "save_model.pth", *small_weights(3))
    run = import_checkpoint(checkpoint, annotation, tmp_path / "run")
    student, description = load_student(run)
    assert description.classes == ("Archery", "HandstandPushups", "Bowling")  # in the order of the columns
    assert (description.fps, description.view.frames, description.view.size) == (4.0, 16, (112, 112))
    original, original_filter = load_reference_checkpoint(checkpoint)
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in original.state_dict().items())
    helpers = load_file(run / "best" / "helpers.safetensors")
    assert helpers.keys() == {f"filter.{key}" for key in original_filter.state_dict()}
    assert torch.equal(helpers["filter.gate.0.weight"], original_filter.gate[0].weight)
    chosen = json.loads((run / "best" / "chosen.json").read_text())
    assert chosen.keys() == {"step", "by", "value"}
    assert "epoch 170" in chosen["by"]
    source = json.loads((run / "source.json").read_text())
    assert source["checkpoint"] == {"file": "save_model.pth", "sha256": file_checksum(checkpoint), "epoch": 170}
    with pytest.raises(FileExistsError, match="exists"):
        import_checkpoint(checkpoint, annotation, run)


def test_a_checkpoint_of_other_classes_leaves_nothing_behind(tmp_path, capsys):
    annotation = write_list(tmp_path / "annotation.json", {"a": {"subset": "training", "label": "Archery"}})
    before = set(tmp_path.iterdir())
    student, noise_filter = small_weights(4)
    path = release_checkpoint(tmp_path / "m.pth", student, noise_filter)
    command = ["reference", "checkpoint", str(path), "--annotation", str(annotation), "--out", str(tmp_path / "run")]
    assert main(command) == 1
    assert re.fullmatch(r"avdistill: .*expected the 3 classes of .*, found a student of 4\n", capsys.readouterr().err)
    release_checkpoint(path, small_weights(3)[0], noise_filter)
    assert main(command) == 1
    assert "expected a filter of the student's 3 classes and width 16, found (4, 16)" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before | {path}


def jpeg(image, mode="RGB"):
    content = io.BytesIO()
    Image.fromarray(image).convert(mode).save(content, "JPEG", quality=95)
    return content.getvalue()


def numbered(count, mode="RGB", height=30, width=40):
    """JPEGs whose grey says which frame they are: 20 times its number."""
    return [jpeg(np.full((height, width, 3), 20 * k, np.uint8), mode) for k in range(count)]


def write_hdf5(path, images, kind="uint8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        if kind == "uint8":
            video = file.create_dataset("video", (len(images),), dtype=h5py.vlen_dtype(np.uint8))
            for k, image in enumerate(images):
                video[k] = np.frombuffer(image, np.uint8)
        else:
            longest = max(map(len, images))
            file["video"] = np.array(images, dtype=f"V{longest}" if kind == "opaque" else f"S{longest}")
    return path


def release_tree(folder, names, *, frames=5, width=16, labels=LABELS):
    """`video_set_4fps`, `audio_features` and `annotation.json` of a few clips; every other one for validation."""
    rng = np.random.default_rng(2)
    database = {}
    for k, name in enumerate(names):
        write_hdf5(folder / "video_set_4fps" / f"{name}.hdf5", numbered(frames))
        (folder / "audio_features").mkdir(exist_ok=True)
        np.save(folder / "audio_features" / f"{name}.npy", np.abs(rng.standard_normal(width)).astype(np.float32))
        split = "validation" if k % 2 else "training"
        database[name] = {"subset": split, "label": labels[k % len(labels)]}
    return write_list(folder / "annotation.json", database, labels)


def imported(folder, out, **options):
    inputs = (folder / "annotation.json", folder / "video_set_4fps", folder / "audio_features")
    return import_clips(*inputs, out, PrepareConfig(short_side=15), workers=1, **options)


@pytest.mark.parametrize(("kind", "mode"), [("uint8", "RGB"), ("uint8", "L"), ("opaque", "RGB"), ("bytes", "L")])
def test_every_frame_is_at_its_place(tmp_path, kind, mode):
    release_tree(tmp_path, ["a"])
    write_hdf5(tmp_path / "video_set_4fps" / "a.hdf5", numbered(7, mode), kind)
    dataset = imported(tmp_path, tmp_path / "dataset")
    frames = dataset.frames(0)
    assert frames.shape == (7, 15, 20, 3)
    assert np.abs(frames.mean((1, 2, 3)) - 20 * np.arange(7)).max() < 2
    assert dataset.fps == 4.0
    assert not dataset.columns["has_audio"][0]


def test_images_are_scaled_as_videos_are(tmp_path):
    """Oracle: Pillow's triangle filter, which widens with the scale as ours does."""
    release_tree(tmp_path, ["a"])
    across, down = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48))
    image = np.stack([across, down, 255 - across], 2).astype(np.uint8)
    smaller = jpeg(image[::2, ::2])
    write_hdf5(tmp_path / "video_set_4fps" / "a.hdf5", [jpeg(image), smaller])
    frames = imported(tmp_path, tmp_path / "dataset").frames(0).astype(int)
    expected = np.asarray(Image.open(io.BytesIO(jpeg(image))).resize((20, 15), Image.Resampling.BILINEAR)).astype(int)
    assert frames.shape == (2, 15, 20, 3)
    assert np.abs(frames[0] - expected).max() <= 4
    assert np.abs(frames[1] - expected).max() <= 12


def test_dataset_of_the_release(tmp_path):
    a, b, c, d = (f"v_{label}_g08_c01" for label in (*LABELS, "Rafting"))
    release_tree(tmp_path, [a, b, c, d])
    (tmp_path / "audio_features" / f"{b}.npy").unlink()
    np.save(tmp_path / "audio_features" / f"{c}.npy", np.arange(16.0)[None])
    (tmp_path / "video_set_4fps" / f"{d}.hdf5").unlink()
    dataset = imported(tmp_path, tmp_path / "dataset")
    assert dataset.columns["id"].tolist() == [a, b, c]
    assert dataset.columns["split"].tolist() == ["train", "validation", "train"]
    assert dataset.labels == [("Archery",), ("HandstandPushups",), ("Bowling",)]
    embedding, logits, present = feature_arrays(dataset, "audio")
    assert present.tolist() == [True, False, True]
    assert embedding[0].tolist() == np.load(tmp_path / "audio_features" / f"{a}.npy").tolist()
    assert embedding[2].tolist() == list(range(16))
    assert np.isfinite(logits[present]).all()
    assert dataset.teachers["audio"].provenance["name"].endswith("/*.npy of the release")
    assert dataset.teachers["audio"].head["labeled_clips"] == 2
    assert dataset.teachers["audio"].modality == "audio"
    skipped = (tmp_path / "dataset" / "skipped.csv").read_text()
    assert re.search(rf"{d},{d}\.hdf5,.*no such file", skipped)
    assert dataset.verify() == []
    assert imported(tmp_path, tmp_path / "dataset").checksum == dataset.checksum  # the same again: nothing to do


def damaged(images):
    return [*images[:2], images[2][:200], *images[3:]]


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: write_hdf5(path, damaged(numbered(4))), "frame 2 does not decode as JPEG"),
        (lambda path: write_hdf5(path, []), "no frame in it"),
        (lambda path: path.write_bytes(b"no HDF5"), "not a readable HDF5 file"),
        (lambda path: h5py.File(path, "w").close(), "expected a dataset 'video' with a JPEG per row"),
    ],
)
def test_a_file_that_cannot_be_read_is_skipped_with_its_reason(tmp_path, write, told):
    release_tree(tmp_path, ["a", "b"])
    write(tmp_path / "video_set_4fps" / "b.hdf5")
    dataset = imported(tmp_path, tmp_path / "dataset")
    assert dataset.columns["id"].tolist() == ["a"]
    assert told in (tmp_path / "dataset" / "skipped.csv").read_text()
    if "frame 2" in told:
        with pytest.raises(UnreadableFileError, match=r"b\.hdf5: frame 2"):
            imported(tmp_path, tmp_path / "strict", strict=True)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.ones(12, np.float32), "expected an embedding of size 16 as in the other files, found 12"),
        (np.full(16, np.nan), "expected finite numbers"),
        (np.ones((2, 16)), r"expected numbers of shape \(D,\) or \(1, D\), found float64 \(2, 16\)"),
        (np.array(["x"]), r"expected an array of numbers"),
        (np.array([{}], dtype=object), "expected an array of numbers"),
    ],
)
def test_an_embedding_that_cannot_be_right_is_an_error(tmp_path, value, told):
    release_tree(tmp_path, ["a", "b", "c"])
    np.save(tmp_path / "audio_features" / "b.npy", value)
    with pytest.raises(DatasetError, match=rf"b\.npy: {told}"):
        imported(tmp_path, tmp_path / "dataset")
    assert not list(tmp_path.glob("dataset*"))


def test_wrong_folders_rates_and_a_missing_h5py(tmp_path, monkeypatch):
    annotation = release_tree(tmp_path, ["a"])
    inputs = annotation, tmp_path / "video_set_4fps", tmp_path / "video_set_4fps", tmp_path / "dataset"
    with pytest.raises(DatasetError, match=r"expected embeddings such as a\.npy, found none of the 1 listed"):
        import_clips(*inputs, PrepareConfig())
    with pytest.raises(ConfigError, match="no clock"):
        import_clips(*inputs, PrepareConfig(fps=None))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"h5py is not installed: install the extra 'reference'"):
        import_clips(*inputs, PrepareConfig())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "expected"),
        ("[]", "expected one JSON object with a list of names as 'labels', found None"),
        ('{"labels": ["x", 1]}', "expected one JSON object with a list of names as 'labels'"),
        ('{"labels": ["x", "x"]}', "expected every class once in 'labels'"),
    ],
)
def test_an_annotation_file_of_another_form(tmp_path, text, told):
    path = tmp_path / "annotation.json"
    path.write_text(text)
    for use in (
        lambda: import_checkpoint(tmp_path / "m.pth", path, tmp_path / "run"),
        lambda: import_clips(path, tmp_path, None, tmp_path / "dataset", PrepareConfig()),
    ):
        with pytest.raises(AnnotationError, match=r"annotation\.json.*expected") as error:
            use()
        assert "\n" not in str(error.value)
    with pytest.raises(AnnotationError, match=told):
        import_checkpoint(tmp_path / "m.pth", path, tmp_path / "run")


def test_the_verb_says_what_it_takes(capsys):
    assert main(["reference", "--help"]) == 0
    assert "checkpoint FILE.pth" in capsys.readouterr().out
    assert main(["reference", "videos"]) == 2
    expected = "avdistill: reference: no verb 'videos'; verbs: clips, checkpoint, retrieve, predictions"
    assert expected in capsys.readouterr().err


def test_workers_read_the_same_without_torch(tmp_path):
    annotation = release_tree(tmp_path, ["a", "b", "c"])
    one = imported(tmp_path, tmp_path / "one")
    two = import_clips(annotation, tmp_path / "video_set_4fps", None, tmp_path / "two", PrepareConfig(short_side=15))
    assert one.checksum == two.checksum
    assert two.teachers == {}
    check = "import sys, avdistill.integrations.gewu_lab.hdf5; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_page_runs_as_written(tmp_path, monkeypatch, capsys):
    """Every command of docs/reference.md, in order; training made small."""
    for task, names in (("ucf_51", "v_A_g08_c0"), ("activitynet", "v_x_")):
        release_tree(tmp_path / "datasets" / task, [f"{names}{k}" for k in range(2)])
    release_checkpoint(tmp_path / "ckpt" / "ucf51_ckpt" / "save_model.pth", *small_weights(3))
    training = (
        "--steps 1 --batch-size 2 --val-fraction 0 --workers 0 --student.view.size 32 32"
        " --student.options embedding_dim 16"
    )
    small = {"reference clips": "--workers 1", "train ucf51_mnf_csc": training, "train activitynet_mnf_csc": training}
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    street = [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    assert [words[0] for words in street] == ["avdistill"] * len(street)
    assert " ".join(words[1] for words in street) == (
        "reference info train evaluate retrieve reference evaluate retrieve reference train evaluate retrieve"
    )
    monkeypatch.chdir(tmp_path)
    for words in street:
        assert main([*words[1:], *shlex.split(small.get(" ".join(words[1:3]), ""))]) == 0, capsys.readouterr().err
    assert ClipDataset("ucf51").teachers["audio"].clips == 2
    metrics = json.loads(Path("ucf51_ckpt/retrieval-validation/metrics.json").read_text())
    assert metrics["queries"] == 1
