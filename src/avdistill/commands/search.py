"""Verbs that index the clips of datasets, and search them: index, search."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from avdistill.commands.console import Printed, output, progress_bar
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError, SearchError
from avdistill.fsio import file_checksum
from avdistill.methods import METHODS
from avdistill.models.checkpoint import WEIGHTS, saved_folder, student_folder
from avdistill.search.columns import Column, student_column
from avdistill.search.encoders import Encoder, open_encoder
from avdistill.search.forms import build_index, form_of, open_index
from avdistill.search.index import Index
from avdistill.search.schema import SHARED, Hit, Space
from avdistill.search.shared import SharedVectors, student_encoder, teacher_encoder
from avdistill.storage.copies import local_copy
from avdistill.storage.url import as_path
from avdistill.training.run_dir import data_manifest, run_config
from avdistill.training.setup import load_method


@dataclass(frozen=True)
class _Index(Printed):
    """Index clips for searching: the features in datasets, and the embeddings of students."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Datasets, whose stored features are indexed, and run folders or exported students, whose embeddings are computed
    and which bring the dataset that they were trained on."""
    out: str
    """A folder, s3://bucket/name (also gs:// and az://) or the http://host:port/collection of a Qdrant server. An older
    index is replaced, an interrupted one continued."""
    form: Literal["exact", "lance", "qdrant"] | None = None
    """The form of the index: exact compares with every clip, lance is LanceDB with an approximate index beyond 200,000
    clips. The default is exact in a folder, lance in a bucket and qdrant on a server."""
    audit: tuple[Path, ...] = ()
    """Folders that `avdistill audit` wrote; their scores may be named in conditions."""
    joint: tuple[str, ...] = ()
    """Names of features that one joint encoder computed of audio and video: these may be compared with each other."""
    cross_modal: bool = False
    """Index for each run the two sides of the space in which its method compares student and teacher, as RUN.student
    and RUN.teacher (methods mnf_csc, robust_csc, cmc and crd): `search --clip ID --space RUN.teacher --target
    RUN.student` then finds clips of the other modality."""
    batch_size: int = 32
    """Windows per batch, for students."""


def index(arguments: list[str]) -> None:
    """`avdistill index DATASET|RUN ... --out INDEX`."""
    a = tyro.cli(_Index, args=arguments, prog="avdistill index")
    form_of(a.out, a.form)  # a place that does not fit is reported now, not after students are loaded
    datasets, columns = _inputs(a.paths, a.batch_size, a.cross_modal)
    with progress_bar("index") as update:
        made = build_index(
            datasets,
            a.out,
            columns,
            audits=a.audit,
            joint=[a.joint] if a.joint else [],
            form=a.form,
            on_progress=update,
        )
    spaces = made.description.spaces
    report = {
        "index": made.location,
        "clips": made.description.clips,
        "datasets": [source.folder for source in made.description.sources],
        "spaces": [vars(space) for space in spaces],
    }
    lines = [f"{made.description.clips} clips of {len(made.description.sources)} datasets: {made.location}"]
    lines += [f"space {space.name!r}: {space.modality}, {space.dim}-d" for space in spaces]
    output(report, lines, a.json)


def _inputs(paths: tuple[Path, ...], batch_size: int, cross_modal: bool) -> tuple[list[Path], list[Column]]:
    """Datasets and columns of students; the dataset of a run comes with it."""
    datasets: dict[Path, Path] = {}
    columns: list[Column] = []
    for place in map(as_path, paths):
        if (place / "dataset.json").exists():
            datasets.setdefault(place.resolve(), place)
            continue
        path = local_copy(place)
        if not (student_folder(path) / WEIGHTS).is_file():
            raise SearchError(f"{path}: expected a dataset, or a run with a trained student, found neither")
        columns.append(student_column(path, batch_size=batch_size))
        if (path / "data.json").exists():
            folder = as_path(data_manifest(path)["dataset"])
            datasets.setdefault(folder.resolve(), folder)
            if cross_modal:
                columns += _shared_columns(path, ClipDataset(folder), batch_size)
    return list(datasets.values()), columns


def _shared_columns(run: Path, dataset: ClipDataset, batch_size: int) -> list[Column]:
    """Both sides of the space of a run's method. Raises ConfigError where it has none."""
    config = run_config(run)
    method_class = METHODS.get(config.method.name)  # none for a custom method, whose file is not run
    if config.teacher is None or method_class is None or not method_class.shares_space:
        sharing = ", ".join(sorted(name for name, method in METHODS.items() if method.shares_space))
        raise ConfigError(f"{run}: --cross-modal: expected a method of {sharing}, found {config.method.name}")
    method, description = load_method(run, dataset)
    folder = (saved_folder(run, "last") or run).resolve()
    weights = [folder / "model.safetensors", folder / "helpers.safetensors"]
    both = SharedVectors(method, description, config.teacher, batch_size)
    return both.columns(run.resolve(), dataset, {str(file): file_checksum(file) for file in weights})


@dataclass(frozen=True)
class _Search(Printed):
    """Find the clips of an index that are nearest to a file, a clip, a label or a text."""

    index: tyro.conf.Positional[str]
    """The index: what `avdistill index --out` named."""
    video: Path | None = None
    """Search by the video of this file."""
    audio: Path | None = None
    """Search by the audio of this file."""
    clip: str | None = None
    """Search by the clip with this id."""
    text: str | None = None
    """Search by words, in the space of a joint encoder of text and images or audio that --encoder names."""
    label: str | None = None
    """Search by the mean direction of the clips that carry this label."""
    dataset: str | None = None
    """With --clip: the name of its dataset, where several datasets have a clip with this id."""
    space: str | None = None
    """The space of the query; the default is the only one of its modality."""
    target: str | None = None
    """The space that is searched, where it is another one that shares its vectors with --space."""
    encoder: str | None = None
    """With --video, --audio or --text and a space of stored features: the teacher that computed them, as in
    `avdistill embed --teacher`."""
    weights: Path | None = None
    """The file of the encoder's weights, where it is not found."""
    where: str | None = None
    """A condition on the clips, as in "split = 'train' AND mismatch_probability < 0.5"."""
    k: int = 10
    """The number of clips to find."""


def search(arguments: list[str]) -> None:
    """`avdistill search INDEX --video FILE | --audio FILE | --clip ID | --text WORDS | --label NAME`."""
    a = tyro.cli(_Search, args=arguments, prog="avdistill search")
    queries = {name: getattr(a, name) for name in ("video", "audio", "clip", "text", "label")}
    given = [name for name, value in queries.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "none"
        raise ConfigError(f"search: expected one of {', '.join(f'--{name}' for name in queries)}, found {found}")
    hits = _find(open_index(a.index), a)
    report = {"index": a.index, given[0]: str(queries[given[0]]), "hits": [hit.to_dict() for hit in hits]}
    output(report, [_line(hit) for hit in hits] or ["no clip found"], a.json)


def _find(found: Index, a: _Search) -> list[Hit]:
    if a.clip is not None:
        return found.search_clip(a.clip, dataset=a.dataset, space=a.space, target=a.target, k=a.k, where=a.where)
    if a.text is not None:
        if a.encoder is None:
            raise ConfigError("--text: expected --encoder, the joint encoder that computed the space, found none")
        return found.search_text(a.text, encoder=a.encoder, space=a.space, k=a.k, where=a.where)
    if a.label is not None:
        return found.search_label(a.label, space=a.space, k=a.k, where=a.where)
    file = a.video or a.audio
    assert file is not None
    space = found.space(a.space, "audio" if a.video is None else "video")
    shared = space.shared.startswith(SHARED)
    return found.search_file(
        file,
        space=space.name,
        target=a.target,
        encoder=_shared_encoder(found, space, a) if shared else a.encoder,
        weights=a.weights,
        k=a.k,
        where=a.where,
    )


def _shared_encoder(found: Index, space: Space, a: _Search) -> Encoder:
    """Of a file into a space that a run's student and teacher share."""
    run = Path(space.model)
    config = run_config(run)
    method, description = load_method(run, ClipDataset(data_manifest(run)["dataset"]))
    if space.name == f"{run.name}.student":
        return student_encoder(method, description)
    teacher = open_encoder(found.description, found.space(config.teacher), a.encoder, a.weights)
    return teacher_encoder(method, teacher)


def _line(hit: Hit) -> str:
    end = "end" if hit.end_seconds is None else f"{hit.end_seconds:.2f}"
    labels = ", ".join(hit.labels) or "-"
    return f"{hit.score:7.4f}  {hit.clip}  {hit.split}  {labels}  {hit.path} {hit.start_seconds:.2f}-{end} s"
