"""The runs of `--run`: their names, and their students, loaded when first needed. No method file is ever run."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import AvdistillError, RunError
from avdistill.inference.prediction import Prediction
from avdistill.inference.predictor import Student
from avdistill.models.checkpoint import WEIGHTS, student_folder

_TIMELINES_KEPT = 256


class Students:
    """Students by the names of their runs."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders
        self._loaded: dict[str, Student] = {}
        self._timelines: OrderedDict[tuple[str, int], Prediction] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Of runs that have a trained student now; a run that is being trained gets one later."""
        return [name for name, folder in self.folders.items() if (student_folder(folder) / WEIGHTS).is_file()]

    def load(self, name: str) -> Student:
        """The best student of a run, as it was when it was first needed. Raises CheckpointError."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = Student.from_pretrained(self.folders[name])
            return self._loaded[name]

    def timeline(self, name: str, dataset: ClipDataset, clip: int) -> Prediction | None:
        """What a student says of a clip over time; None where it cannot: another rate, no such modality."""
        key = (name, clip)
        with self._lock:
            if key in self._timelines:
                self._timelines.move_to_end(key)
                return self._timelines[key]
        try:
            found = self.load(name).predict_clip(dataset, clip)
        except AvdistillError:
            return None
        with self._lock:
            self._timelines[key] = found
            while len(self._timelines) > _TIMELINES_KEPT:
                self._timelines.popitem(last=False)
        return found


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by as many of the last parts of their paths as tell them apart. Raises RunError for a missing one."""
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder}: expected a run, found no such folder")
    paths = list(dict.fromkeys(folder.resolve() for folder in folders))
    for length in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    return {}
