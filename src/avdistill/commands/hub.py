"""Verbs of students in folders and on the hub: publish, list."""

from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from avdistill.commands.console import Printed, output
from avdistill.config_io import decode, read_json
from avdistill.errors import ConfigError
from avdistill.fsio import error_message
from avdistill.models.checkpoint import CONFIG, WEIGHTS, student_folder
from avdistill.models.hub import HUB, list_remote
from avdistill.types import StudentConfig


@dataclass(frozen=True)
class _Publish(Printed):
    """Publish the best student of a run on the Hugging Face hub, with preprocessing and a model card."""

    run: tyro.conf.Positional[Path]
    """A run folder, or an exported folder with model.safetensors."""
    repository: tyro.conf.Positional[str]
    """The repository, as org/name; it is made if it is missing."""
    license: str = ""
    """The license of the weights, as the hub names licenses, such as apache-2.0; the card says it if none is chosen."""
    data: str = ""
    """What the training data are and what their license allows, in a sentence for the card."""
    limits: tuple[str, ...] = ()
    """Further limits for the card, a sentence each."""
    revision: str | None = None
    """The branch to publish on, which is made if it is missing; by default the main one."""
    private: bool = False
    """Make a new repository private."""
    out: Path | None = None
    """Write the files into this new folder to look at them, and publish nothing."""


def publish(arguments: list[str]) -> None:
    """`avdistill publish RUN org/name`."""
    a = tyro.cli(_Publish, args=arguments, prog="avdistill publish")
    from avdistill.integrations.model_card import CardOptions
    from avdistill.integrations.publish import publish as publish_run
    from avdistill.integrations.publish import write_student

    card = CardOptions(license=a.license, data=a.data, limits=a.limits)
    repository = a.repository.removeprefix(HUB)
    if a.out is not None:
        write_student(a.run, a.out, repository, card)
        output({"out": str(a.out)}, [f"{a.out}: what would be published"], a.json)
        return
    address, page = publish_run(a.run, repository, card=card, private=a.private, revision=a.revision)
    output({"address": address, "page": page}, [address, page], a.json)


@dataclass(frozen=True)
class _List(Printed):
    """List the students in a folder, or those on the Hugging Face hub."""

    folder: tyro.conf.Positional[Path] = Path()
    """The folder: its runs, exported students and checkpoints; by default the working folder."""
    remote: bool = False
    """List students on the hub instead."""
    author: str | None = None
    """With --remote: an organization or user."""
    search: str | None = None
    """With --remote: a part of the name."""
    limit: int = 100
    """With --remote: at most this many."""


def list_students(arguments: list[str]) -> None:
    """`avdistill list [FOLDER]` or `avdistill list --remote`."""
    a = tyro.cli(_List, args=arguments, prog="avdistill list")
    if a.limit < 1:
        raise ConfigError(f"--limit: must be at least 1, got {a.limit}")
    if a.remote:
        if a.folder != Path():
            raise ConfigError(f"{a.folder}: expected no folder with --remote")
        found = list_remote(a.author, a.search, a.limit)
        lines = [
            f"{each.address:<44} {each.modality:<6} {each.license:<14} {each.modified:<11} {each.downloads} downloads"
            for each in found
        ]
        output({"students": [asdict(each) for each in found]}, lines or ["no students on the hub"], a.json)
        return
    if a.author or a.search:
        raise ConfigError("--author, --search: expected with --remote only")
    if not a.folder.is_dir():
        raise ConfigError(f"{a.folder}: expected a folder")
    rows = [
        _row(folder)
        for folder in sorted([a.folder, *a.folder.iterdir()])
        if (student_folder(folder) / WEIGHTS).is_file()
    ]
    lines = [f"{row['student']:<44} {row['description']}" for row in rows]
    output({"students": rows}, lines or [f"no students in {a.folder}"], a.json)


def _row(folder: Path) -> dict[str, object]:
    """A student's name and what it is; of a damaged one the reason."""
    file = student_folder(folder) / CONFIG
    row: dict[str, object] = {"student": str(folder), "bytes": (student_folder(folder) / WEIGHTS).stat().st_size}
    try:
        config = decode(StudentConfig, read_json(file), "student")
    except (OSError, ValueError) as error:
        return row | {"description": f"damaged: {error_message(error)}"}
    modality, classes = config.view.modality, len(config.classes)
    text = f"{modality:<6} {config.model}, {classes} classes, {row['bytes'] / 1e6:.1f} MB"  # type: ignore[operator]
    return row | {"modality": modality, "model": config.model, "classes": classes, "description": text}
