"""Converts files of the paper's released implementation (GeWu-Lab/cross-modal-distillation, commit d5ceee6).

Its checkpoint becomes a student and a noise filter, or a run folder; its annotation.json, HDF5 videos and .npy
embeddings become a dataset. A checkpoint is unpickled with a list of allowed classes; nothing else in it is run.
"""

import os
import pickle
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR

from avdistill.annotations import read_annotations
from avdistill.annotations.schema import NO_FILE, annotation_error, format_path, parse_json, read_text, truncate_repr
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import CheckpointError, ConfigError, DatasetError
from avdistill.fsio import commit, file_checksum, follow_link, is_vacant, remove_tree, write_json
from avdistill.inputs import VideoInput
from avdistill.integrations.gewu_lab.hdf5 import read_hdf5_clip
from avdistill.models.checkpoint import save_student
from avdistill.models.noise_filter import NoiseFilter
from avdistill.models.r2plus1d import R2Plus1D, r2plus1d_xia2023
from avdistill.models.weights import check_tensors, save_tensors, tensors
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.progress import OnProgress
from avdistill.teachers.extraction import add_features
from avdistill.teachers.precomputed import read_embeddings
from avdistill.types import StudentConfig

# Our names of the filter's parts, and the release's. The student's parts have the same names.
_FILTER_NAMES = {
    "gate": "gated_feature_composer",
    "attention": "attn",
    "guide": "trans_sv",
    "classifier": "sv_cls_classifier",
}
# The release spells this class otherwise than UCF101's folders and our readers of lists do.
_SPELLING = {"HandStandPushups": "HandstandPushups"}


def load_reference_checkpoint(path: str | os.PathLike[str]) -> tuple[R2Plus1D, NoiseFilter]:
    """The student and the noise filter of a released checkpoint (`save_model.pth`), in evaluation mode on the CPU.

    Depth, width and number of classes are read off the weights. The file is unpickled with PyTorch's restricted reader
    and MultiStepLR, Adam, Counter, defaultdict and dict as the only additions: the release pickles whole schedulers.

    Raises:
        CheckpointError: no such file, a damaged one, one that holds any other class, or weights that are missing, too
            many or of another shape; one line that names the class or the weight.
    """
    student, noise_filter, _ = _read_checkpoint(Path(path))
    return student, noise_filter


def _read_checkpoint(path: Path) -> tuple[R2Plus1D, NoiseFilter, int]:
    """Student, filter and epoch."""
    content = _unpickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(content).__name__}")
    weights = _weights(path, content, "state_dict")
    C, D = _width(path, weights, "state_dict", "cls.weight")
    depth = 34 if any(key.startswith("conv2.blocks.") for key in weights) else 18
    student = r2plus1d_xia2023(C, depth=depth, embedding_dim=D)
    _fit(path, student, weights, "state_dict", {})
    weights = _weights(path, content, "audio_state_dict")
    C, D = _width(path, weights, "audio_state_dict", "sv_cls_classifier.weight")
    if D % 2:
        raise CheckpointError(f"{path}: audio_state_dict: expected an even width, found {D}")
    noise_filter = NoiseFilter(D, C)
    _fit(path, noise_filter, weights, "audio_state_dict", _FILTER_NAMES)
    epoch = content.get("epoch")
    if not isinstance(epoch, int):
        raise CheckpointError(f"{path}: expected 'epoch' as a whole number, found {epoch!r:.60}")
    return student.eval(), noise_filter.eval(), epoch


def _unpickle(path: Path) -> object:
    # PyTorch's restricted reader fills plain dictionaries only, so Adam's defaultdict of states comes back as one.
    allowed: list[Any] = [MultiStepLR, Adam, Counter, (_plain_dict, "collections.defaultdict"), dict]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged or hostile pickle may raise anything at all
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused and isinstance(error, pickle.UnpicklingError):
            expected = "nothing but weights, MultiStepLR, Adam, Counter, defaultdict and dict"
            raise CheckpointError(f"{path}: expected {expected}, found {refused[1]}; nothing was loaded") from None
        raise CheckpointError(f"{path}: not a checkpoint of the release, or a damaged one") from error


def _plain_dict(_default_factory: object = None) -> dict[Any, Any]:
    return {}


def _weights(path: Path, content: Mapping[str, object], part: str) -> dict[str, Tensor]:
    """The tensors of one part, without the prefix that DataParallel puts before every key."""
    held = content.get(part)
    if not isinstance(held, Mapping) or not held:
        raise CheckpointError(f"{path}: expected weights under {part!r}, found none")
    return {key.removeprefix("module."): value for key, value in check_tensors(f"{path}: {part}", held).items()}


def _width(path: Path, weights: Mapping[str, Tensor], part: str, classifier: str) -> tuple[int, int]:
    """(C, D) of a part, from the weights of its linear classifier."""
    if classifier not in weights:
        raise CheckpointError(f"{path}: {part}: {classifier} is missing")
    shape = tuple(weights[classifier].shape)
    if len(shape) != 2 or min(shape) < 1:
        raise CheckpointError(f"{path}: {part}: {classifier}: expected the shape (classes, width), found {shape}")
    return shape


def _fit(path: Path, module: nn.Module, weights: Mapping[str, Tensor], part: str, names: Mapping[str, str]) -> None:
    """Load the weights into the module; `names` are those of the release for the module's parts."""
    expected: dict[str, tuple[str, Tensor]] = {}  # by the release's key
    for key, value in module.state_dict().items():
        head, _, rest = key.partition(".")
        expected[f"{names.get(head, head)}.{rest}"] = (key, value)
    for key in weights:
        if key not in expected:
            raise CheckpointError(f"{path}: {part}: {key} belongs to no part of {type(module).__name__}")
    for key, (_, value) in expected.items():
        # BatchNorm's count of batches is not used here, and old versions of PyTorch did not keep it.
        if key not in weights and not key.endswith("num_batches_tracked"):
            raise CheckpointError(f"{path}: {part}: {key} is missing")
        if key in weights and weights[key].shape != value.shape:
            shapes = f"expected the shape {tuple(value.shape)}, found {tuple(weights[key].shape)}"
            raise CheckpointError(f"{path}: {part}: {key}: {shapes}")
    module.load_state_dict({expected[key][0]: value for key, value in weights.items()}, strict=False)


def import_checkpoint(
    path: str | os.PathLike[str], annotation: str | os.PathLike[str], out: str | os.PathLike[str]
) -> Path:
    """Make a run folder of a released checkpoint, for `evaluate`, `retrieve` and every later verb.

    Args:
        path: the release's `.pth`.
        annotation: its annotation.json, whose `labels` name the classifier's columns in their order.
        out: the run folder, new or empty. `best/` holds the student and, under `filter.` in
            `helpers.safetensors`, the noise filter; `source.json` says where they come from.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` is not empty.
        CheckpointError: see `load_reference_checkpoint`; or student, filter and classes do not belong together.
        AnnotationError: the annotation file cannot be used.
    """
    path, annotation, out = Path(path), Path(annotation), follow_link(out)
    if not is_vacant(out):
        raise FileExistsError(f"{out}: exists already; name a new folder")
    classes = _read_classes(annotation)
    student, noise_filter, epoch = _read_checkpoint(path)
    C, D = student.cls.weight.shape
    if len(classes) != C:
        raise CheckpointError(f"{path}: expected the {len(classes)} classes of {annotation}, found a student of {C}")
    if noise_filter.classifier.weight.shape != (C, D):
        found = tuple(noise_filter.classifier.weight.shape)
        raise CheckpointError(f"{path}: expected a filter of the student's {C} classes and width {D}, found {found}")
    config = StudentConfig(
        model="r2plus1d_xia2023",
        options={"depth": 34 if len(student.conv2.blocks) else 18, "embedding_dim": D},
        classes=classes,
        view=VideoInput(frames=16, size=(112, 112)),
        fps=4.0,
        sample_rate_hz=16000,
    )
    fresh = out.with_name(out.name + ".tmp")
    remove_tree(fresh)
    (fresh / "best").mkdir(parents=True)
    save_student(fresh / "best", student, config)
    filter_weights = {f"filter.{key}": value for key, value in tensors(noise_filter).items()}
    save_tensors(filter_weights, fresh / "best" / "helpers.safetensors")
    chosen_by = f"the release: epoch {epoch}; its save_model.pth is the best on its validation (test) clips"
    write_json(fresh / "best" / "chosen.json", {"step": None, "by": chosen_by, "value": None})
    source = {
        "imported_from": "a checkpoint of GeWu-Lab/cross-modal-distillation",
        "checkpoint": {"file": path.name, "sha256": file_checksum(path), "epoch": epoch},
        "annotation": {"file": annotation.name, "sha256": file_checksum(annotation)},
    }
    write_json(fresh / "source.json", source)
    commit(fresh, out)
    return out


def import_clips(
    annotation: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    embeddings: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    config: PrepareConfig,
    *,
    workers: int = 2,
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> ClipDataset:
    """Make a dataset of the release's clips, with its audio embeddings as features "audio"; resumable like `prepare`.

    Clips without a readable HDF5 file are listed in `skipped.csv`; a clip without an .npy file has no embedding.

    Args:
        annotation: the release's annotation.json.
        videos: folder of `<name>.hdf5`.
        embeddings: folder of `<name>.npy`, each float (D,) or (1, D); None adds no teacher.
        out: the dataset's folder.
        config: `fps` is the rate the frames were taken at, 4 in the release.
        workers, strict, on_progress: see `prepare`.

    Raises:
        ConfigError: no fps, or h5py is not installed.
        AnnotationError: the annotation file cannot be used.
        DatasetError: an embedding is of another width than the others, not finite or not an array; none was found; or
            what `prepare` raises.
    """
    if config.fps is None:
        raise ConfigError("the release's clips have no clock: fps: expected their frames a second (4), found none")
    if find_spec("h5py") is None:
        raise ConfigError("h5py is not installed: install the extra 'reference'")
    listed = read_annotations(annotation, format="gewu_lab")
    clips = [replace(clip, path=f"{clip.clip_id}.hdf5") for clip in listed]
    # Before the videos, so that a wrong folder or a damaged file is reported at once.
    features = None if embeddings is None else _read_embeddings(Path(embeddings), [clip.clip_id for clip in clips])
    dataset = prepare(
        clips, videos, out, config, read=read_hdf5_clip, workers=workers, strict=strict, on_progress=on_progress
    )
    if features is not None:
        ids = dataset.columns["id"].tolist()
        absent = np.full_like(next(iter(features.values())), np.nan)
        add_features(
            dataset,
            "audio",
            modality="audio",
            provenance={"name": f"{embeddings}/*.npy of the release"},
            embedding=np.stack([features.get(name, absent) for name in ids]),
            logits=None,
            classes=(),
        )
    return dataset


def _read_embeddings(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """float32 (D,) by clip, for those that have a file."""
    files = {name: file for name in names if (file := folder / f"{name}.npy").is_file()}
    if not files:
        raise DatasetError(
            f"{folder}: expected embeddings such as {names[0]}.npy, found none of the {len(names)} listed"
        )
    return read_embeddings(files)


def _read_classes(annotation: Path) -> tuple[str, ...]:
    """`labels` of annotation.json: the classes in the order of the classifier's columns."""
    where = format_path(annotation)
    try:
        content = parse_json(where, read_text(annotation))
    except OSError as error:
        raise annotation_error(where, "a readable file", error.strerror or NO_FILE) from error
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) and label for label in labels):
        raise annotation_error(where, "one JSON object with a list of names as 'labels'", truncate_repr(labels))
    classes = tuple(str(_SPELLING.get(label, label)) for label in labels)
    if len(set(classes)) < len(classes):
        raise annotation_error(where, "every class once in 'labels'", truncate_repr(labels))
    return classes
