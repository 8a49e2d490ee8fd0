"""What the teachers of a dataset say of one clip, read from their files without loading them."""

import numpy as np
from scipy.special import expit, softmax

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.features import feature_files
from avdistill.errors import DatasetError
from avdistill.fsio import check_mapped, error_message, load_array


class TeacherLogits:
    """Memory maps of the logits of a dataset's features."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset
        self._maps: dict[str, np.ndarray] = {}

    def top(self, name: str, row: int, count: int = 5) -> dict[str, object] | None:
        """Name, modality and most probable classes of a clip; None where there are no logits of it.

        Raises:
            DatasetError: the file is missing or damaged.
        """
        entry = self.dataset.teachers[name]
        if not entry.classes:
            return None
        logits = self._row(name, row)
        if np.isnan(logits).any():
            return None
        # Independent classes, as those of an audio tagger, are not the dataset's.
        single = set(entry.classes) <= set(self.dataset.classes) and not self.dataset.multi_label
        probabilities = softmax(logits) if single else expit(logits)
        best = np.argsort(-probabilities, kind="stable")[:count]
        top = [{"label": entry.classes[i], "probability": float(probabilities[i])} for i in best]
        return {"name": name, "modality": entry.modality, "top": top}

    def _row(self, name: str, row: int) -> np.ndarray:
        file = self.dataset.folder / feature_files(name)[1]
        try:
            if name not in self._maps:
                self._maps[name] = load_array(file, mapped=True)
            found = self._maps[name]
            check_mapped(found)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{file}: damaged or missing: {error_message(error)}") from error
        if found.shape != (len(self.dataset), len(self.dataset.teachers[name].classes)):
            raise DatasetError(f"{file}: expected a row for each clip, found {found.shape}")
        return np.array(found[row], np.float64)
