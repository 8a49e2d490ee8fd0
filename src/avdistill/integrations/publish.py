"""`publish`: the best student of a run, with preprocessing and model card, into a repository on the hub."""

import os
import tempfile
from pathlib import Path
from typing import Any

from avdistill.fsio import file_checksum, write_text
from avdistill.inference.export import export
from avdistill.inference.predictor import Student
from avdistill.integrations.model_card import CardOptions, model_card
from avdistill.models.checkpoint import WEIGHTS
from avdistill.models.hub import upload

CARD = "README.md"


def write_student(
    run: str | os.PathLike[str], out: str | os.PathLike[str], repository: str, card: CardOptions | None = None
) -> dict[str, Any]:
    """Write what `publish` uploads into a new folder: weights, config, preprocessing and card.

    Args:
        run: a run folder, or an exported student.
        out: the folder.
        repository: `org/name`, for the card.
        card: what the card says that the run does not record.

    Returns:
        The content of `preprocessing.json`.

    Raises:
        As `export` and `model_card`.
    """
    report = export(run, out, format="safetensors")
    student = Student.from_pretrained(out, "cpu")
    text = model_card(Path(run), student, repository, file_checksum(Path(out) / WEIGHTS), card)
    write_text(Path(out) / CARD, text)
    return report


def publish(
    run: str | os.PathLike[str],
    repository: str,
    *,
    card: CardOptions | None = None,
    private: bool = False,
    revision: str | None = None,
) -> tuple[str, str]:
    """Publish the best student of a run.

    Args:
        run: a run folder, or an exported student.
        repository: `org/name` on the hub; made if it is missing.
        card: what the model card says that the run does not record.
        private: a new repository is not public.
        revision: the branch; None is the main one.

    Returns:
        The address `hf://org/name@commit`, and the commit's page.

    Raises:
        HubError: the repository cannot be written.
        As `write_student`.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "student"
        report = write_student(run, out, repository, card)
        message = (
            f"{report['source']['model']} of run {report['source']['run']}, avdistill {report['source']['avdistill']}"
        )
        return upload(out, repository, message=message, private=private, revision=revision)
