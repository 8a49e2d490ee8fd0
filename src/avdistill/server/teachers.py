"""What the teachers of a dataset say of one clip, read from their files without loading them."""

import numpy as np
from scipy.special import expit, softmax

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.mapped_features import MappedFeatures


class TeacherLogits:
    """Memory maps of the logits of a dataset's features."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset
        self._maps: dict[str, MappedFeatures] = {}

    def top(self, name: str, row: int, count: int = 5) -> dict[str, object] | None:
        """Name, modality and most probable classes of a clip; None where there are no logits of it.

        Raises:
            DatasetError: a file is missing or damaged.
        """
        entry = self.dataset.teachers[name]
        if not entry.classes:
            return None
        if name not in self._maps:
            self._maps[name] = self.dataset.map_features(name)
        features = self._maps[name]
        if not features.valid[row]:
            return None
        logits = features.rows("logits", np.array([row]))[0].astype(np.float64)
        # Independent classes, as those of an audio tagger, are not the dataset's.
        single = set(entry.classes) <= set(self.dataset.classes) and not self.dataset.multi_label
        probabilities = softmax(logits) if single else expit(logits)
        best = np.argsort(-probabilities, kind="stable")[:count]
        top = [{"label": entry.classes[i], "probability": float(probabilities[i])} for i in best]
        return {"name": name, "modality": entry.modality, "top": top}
