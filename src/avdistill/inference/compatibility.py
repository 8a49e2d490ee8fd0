"""Whether a dataset has the rates that a network was trained at."""

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import TeacherError
from avdistill.inputs import View


def check_rates(dataset: ClipDataset, view: View, fps: float | None, sample_rate_hz: int, who: str) -> None:
    """Raise TeacherError where the dataset has another rate than a network was trained at."""
    expected, found = {"fps": fps, "sample_rate_hz": sample_rate_hz}[view.rate], getattr(dataset, view.rate)
    if expected != found:
        raise TeacherError(
            f"{dataset.folder}: expected {view.rate} {expected}, at which {who} was trained, found {found}"
        )
