"""`Teacher`, a frozen network with its input, and `TeacherSpec`, an entry of the table of pretrained teachers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avdistill.dataset.stored_features import Provenance
from avdistill.fsio import file_checksum
from avdistill.inputs import View
from avdistill.types import Network


def weights_provenance(name: str, weights: Path) -> Provenance:
    """The provenance of a network whose weights are a file."""
    return {"name": name, "weights": weights.name, "weights_sha256": file_checksum(weights)}


@dataclass(frozen=True)
class Teacher:
    """A frozen network.

    Attributes:
        network: in evaluation mode.
        view: its input window; the modality is the teacher's.
        classes: names of the logits' columns.
        multi_label: whether its probabilities are sigmoids.
        fps: frames per second of its training data; None means every frame.
        sample_rate_hz: of the audio it was trained on.
        provenance: identifies the network and its weights, for the record in the dataset.
        any_fps: whether frames of any rate are accepted (image networks).
        any_rate: whether audio of another rate is resampled instead of refused.
    """

    network: Network
    view: View
    classes: tuple[str, ...]
    multi_label: bool
    fps: float | None
    sample_rate_hz: int
    provenance: Provenance
    any_fps: bool = False
    any_rate: bool = False


@dataclass(frozen=True)
class TeacherSpec:
    """A pretrained teacher with a name: what `avdistill teacher list` prints, and how to load it.

    Attributes:
        modality: "audio" or "video".
        embedding_dim: D.
        input: what the network is given, in words ("16000 Hz", "224 x 224, each frame").
        minimum_seconds: the shortest input; shorter ones are repeated. None for video.
        weights: where they come from, in words.
        license: of the weights.
        load: makes the teacher from a file or folder of weights; None means the installed ones or, where `weights`
            says so, a download on first use. Raises TeacherError or CheckpointError.
        available: whether `load(None)` works without a download.
    """

    modality: Literal["audio", "video"]
    embedding_dim: int
    input: str
    minimum_seconds: float | None
    weights: str
    license: str
    load: Callable[[Path | None], Teacher]
    available: Callable[[], bool]
