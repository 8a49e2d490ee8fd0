"""A trained network on disk: `model.safetensors`, and `config.json`, which suffices to build and feed it."""

import os
from pathlib import Path

from torch import nn

from avdistill.config_io import decode, encode, read_json
from avdistill.errors import CheckpointError, ConfigError
from avdistill.fsio import as_json, write_text
from avdistill.models.hub import local_folder
from avdistill.models.registry import INITIAL_WEIGHTS, build_model
from avdistill.models.weights import load_tensors, save_tensors, tensors
from avdistill.types import StudentConfig, StudentNetwork

CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: beside the metrics of `evaluate` and `retrieve`: the weights and the dataset that they are of
PROVENANCE = "provenance.json"


def save_student(folder: Path, student: nn.Module, config: StudentConfig) -> None:
    """Write `model.safetensors` and `config.json` into an existing folder."""
    save_tensors(tensors(student), folder / WEIGHTS)
    write_text(folder / CONFIG, as_json(encode(config)))


def load_student(folder: str | os.PathLike[str]) -> tuple[StudentNetwork, StudentConfig]:
    """A trained network in evaluation mode on the CPU, and its config.

    Args:
        folder: what `save_student` wrote, or a run folder, whose best student is loaded; a URL is fetched, and
            `hf://org/name@revision` is on the Hugging Face hub (`hub.local_folder`).

    Raises:
        CheckpointError: nothing is there, config and weights do not fit together, or the repository is refused.
    """
    folder = student_folder(local_folder(folder))
    for name in (WEIGHTS, CONFIG):  # the weights first: a run folder has another config.json
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: no trained network here ({name} is missing)")
    try:
        config = decode(StudentConfig, read_json(folder / CONFIG), "student")
        # The weights are in the file: pretrained ones are not downloaded again.
        options = {name: value for name, value in config.options.items() if name not in INITIAL_WEIGHTS}
        student = build_model(config.model, len(config.classes), options)
        _check_fits(student, config)
    except (ConfigError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    load_tensors(student, folder / WEIGHTS)
    return student.eval(), config


def _check_fits(student: StudentNetwork, config: StudentConfig) -> None:
    """Raise ConfigError where a config does not feed its network."""
    view = config.view
    expected: dict[str, tuple[object, object]] = {"modality": (student.modality, view.modality)}
    for name, given in (("frames", view), ("sample_rate_hz", config)):
        fixed = getattr(student, name, None)
        expected[name] = (fixed, fixed if fixed is None else getattr(given, name, None))
    for name, (wanted, found) in expected.items():
        if wanted != found:
            raise ConfigError(f"student: {name}: model {config.model} takes {wanted}, found {found}")
    if not config.classes or len(set(config.classes)) < len(config.classes):
        raise ConfigError("student.classes: expected names, each once")
    if not 1 <= config.sample_rate_hz <= 10**7 or not 0 < (config.fps or 1) < 1000:
        raise ConfigError(f"student: impossible rates: {config.fps} fps, {config.sample_rate_hz} Hz")


def student_folder(folder: Path) -> Path:
    """The folder of a run's best student; any other folder, and a run without one yet, is returned as it is."""
    return saved_folder(folder, "best") or folder


def saved_folder(run: Path, name: str) -> Path | None:
    """`best` or `last` of a run; None where nothing has been saved.

    A kill while a newer state took its place leaves the one before under its old name, which is then the answer.
    """
    return next((folder for folder in (run / name, run / f"{name}.old") if folder.is_dir()), None)
