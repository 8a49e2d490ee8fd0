"""A pretrained audio teacher as one safetensors file: weights, class names, license and provenance."""

import json
import os
from pathlib import Path

from avdistill.errors import TeacherError
from avdistill.fsio import file_checksum
from avdistill.models.weights import CLASSES, save_tensors, tensors
from avdistill.teachers.audio import AUDIO_TEACHERS


def convert_teacher(
    name: str, out: str | os.PathLike[str], *, weights: str | os.PathLike[str] | None = None
) -> dict[str, str]:
    """Write the weights of PANNs or YAMNet as `--weights FILE.safetensors` and `load_teacher` take them.

    The names of the classes, the license and the provenance are in the file's metadata.

    Args:
        name: of a pretrained audio teacher.
        out: a new file that ends in .safetensors.
        weights: as for `load_teacher`.

    Returns:
        The metadata, and `sha256` of the file.

    Raises:
        TeacherError: another teacher, another ending, or weights that are not found.
        CheckpointError: weights that do not fit.
        FileExistsError: the file is there.
    """
    file = Path(out)
    if name not in AUDIO_TEACHERS:
        raise TeacherError(f"{name}: expected one of {', '.join(sorted(AUDIO_TEACHERS))}")
    if file.suffix != ".safetensors":
        raise TeacherError(f"{file}: expected a file that ends in .safetensors")
    if file.exists():
        raise FileExistsError(f"{file}: exists already; name a new file")
    teacher = AUDIO_TEACHERS[name].load(None if weights is None else Path(weights))
    metadata = {
        "teacher": name,
        "license": AUDIO_TEACHERS[name].license,
        "provenance": json.dumps(teacher.provenance),
        CLASSES: json.dumps(teacher.classes),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors(teacher.network), file, metadata)
    return metadata | {"sha256": file_checksum(file)}
