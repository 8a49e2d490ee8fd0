"""From a media file to a vector of a space: by the student that made the space, or by a teacher that is named."""

import itertools
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import SearchError
from avdistill.inference.file_windows import file_items, read_windows
from avdistill.inference.predictor import Student
from avdistill.inputs import View
from avdistill.preparation.clip_reader import IsolatedReader
from avdistill.preparation.prepare import PrepareConfig
from avdistill.search.schema import SHARED, IndexDescription, Space
from avdistill.teachers.extraction import at_dataset_rates, provenance_on
from avdistill.teachers.registry import load_teacher
from avdistill.types import Network


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network and how files are read for it.

    Attributes:
        network: in evaluation mode.
        view: its input.
        reading: how the files of the indexed clips were decoded.
        windows: evenly spaced windows per file; None slides over the whole file.
    """

    network: Network
    view: View
    reading: PrepareConfig
    windows: int | None = None


def open_encoder(
    description: IndexDescription,
    space: Space,
    name: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> Encoder:
    """The network that computed a space's vectors. Arguments and errors as `Index.search_file`."""
    if space.shared.startswith(SHARED):
        raise SearchError(f"space {space.name!r}: expected an encoder made of run {space.model}, found none")
    if space.model:
        student = Student.from_pretrained(space.model)
        return Encoder(student.network, student.config.view, student.reading)
    if name is None:
        made_by = space.provenance.get("name")
        raise SearchError(
            f"space {space.name!r}: expected the encoder that computed it ({made_by}), found none; name it"
        )
    teacher = load_teacher(name, weights=weights)
    datasets = (ClipDataset(source.folder) for source in description.sources)
    dataset = next((each for each in datasets if space.name in each.teachers), None)
    if dataset is None:
        raise SearchError(f"space {space.name!r}: expected a dataset with such features, found none")
    check_provenance(space, provenance_on(dataset, teacher), str(name))
    windows = space.provenance.get("windows")
    return Encoder(
        network=at_dataset_rates(dataset, teacher, space.name).eval(),
        view=teacher.view,
        reading=PrepareConfig(fps=dataset.fps, sample_rate_hz=dataset.sample_rate_hz, **dataset.video_reading),
        windows=None if windows is None else int(windows),
    )


def check_provenance(space: Space, provenance: Mapping[str, object], name: str) -> None:
    """Raise SearchError where an encoder is not the one that computed a space's vectors."""
    for key, found in provenance.items():
        if found != space.provenance.get(key):
            raise SearchError(
                f"space {space.name!r}: {name}: expected {key} {space.provenance.get(key)}, found {found}"
            )


def embed_file(
    encoder: Encoder, file: str | os.PathLike[str], *, batch_size: int = 32, reader: IsolatedReader | None = None
) -> np.ndarray:
    """float32 (D,), the mean over the windows of a file, as of a clip. Errors as `Student.predict`."""
    device, total, count = next(encoder.network.parameters()).device, 0.0, 0
    with IsolatedReader() if reader is None else nullcontext(reader) as isolated:
        items = file_items(Path(file), encoder.view, encoder.reading, isolated.for_one_file())
        windows = read_windows(items, windows=encoder.windows)
        while batch := list(itertools.islice(windows, batch_size)):
            inputs = torch.from_numpy(np.stack([window.items for window in batch])).to(device)
            with torch.inference_mode():
                features = encoder.network(encoder.view.network_input(inputs))
            total = total + features.embedding.double().sum(0).cpu().numpy()
            count += len(batch)
    return np.asarray(total / count, np.float32)
