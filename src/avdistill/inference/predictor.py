"""A trained student on media files and clips, by PyTorch. No dataset, no teacher."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.windows import sliding_starts, take_window
from avdistill.distributed import best_device
from avdistill.fsio import write_text
from avdistill.inference.file_windows import Window
from avdistill.inference.prediction import FileStudent, Prediction, reading_of
from avdistill.inference.runner import check_rates
from avdistill.models.checkpoint import load_student, save_student
from avdistill.models.hub import upload
from avdistill.preparation.clip_reader import PrepareConfig
from avdistill.types import StudentConfig, StudentNetwork


class Student(FileStudent):
    """A trained student that takes media files.

        student = avdistill.Student.from_pretrained("run")
        print(student.predict("video.mp4"))

    Attributes:
        network: in evaluation mode, on its device.
        config: classes, input and rates of the network.
        reading: how files are decoded for it.
    """

    def __init__(self, network: StudentNetwork, config: StudentConfig, reading: PrepareConfig | None = None) -> None:
        self.network, self.config = network, config
        self.reading = reading_of(config) if reading is None else reading

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: str = "auto",
        *,
        short_side: int | None = None,
        size: tuple[int, int] | None = None,
        region: tuple[int, int, int, int] | Literal["whole"] | None = None,
    ) -> Student:
        """The student of a run (its best), of a folder with `config.json` and `model.safetensors`, or on the hub.

        Video is decoded as it was for the training dataset, then scaled and cropped as `evaluate` does it: a file gives
        the same probabilities as its clip in the dataset. Where the config does not record how the dataset was made (a
        reference checkpoint), the shorter side is decoded to as many pixels as the input's longer side.

        Args:
            path: a run folder, its `best/` or `last/`, what `save_pretrained` or `export` (as safetensors) wrote, or
                `hf://org/name@revision`: a student on the Hugging Face hub, from its cache where it is there.
            device: "auto", "cpu", "cuda", ...
            short_side, size: pixels as in `prepare`, instead of the training dataset's.
            region: likewise; "whole" is the whole frame.

        Raises:
            CheckpointError: there is no trained network.
            HubError: no such repository, or one with pickles or code in it.
            ConfigError: sizes that contradict each other.
        """
        network, config = load_student(path)
        return cls(network.to(best_device(device)), config, reading_of(config, short_side, size, region))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors`, for `from_pretrained`; the folder may exist."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        save_student(out, self.network, self.config)

    def push_to_hub(
        self,
        repository: str,
        *,
        message: str = "avdistill student",
        private: bool = False,
        revision: str | None = None,
        card: str | None = None,
    ) -> str:
        """Write the student into a repository on the Hugging Face hub, as one commit.

        `avdistill publish` does the same for a run, with a model card made from its results.

        Args:
            repository: `org/name`; made if it is missing.
            message: of the commit.
            private: a new repository is not public.
            revision: the branch, made if it is missing; None is the main one.
            card: the content of `README.md`; None leaves the repository's as it is.

        Returns:
            The address `hf://org/name@commit`, for `from_pretrained`.

        Raises:
            HubError: the repository cannot be written.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            if card is not None:
                write_text(Path(folder) / "README.md", card)
            return upload(Path(folder), repository, message=message, private=private, revision=revision)[0]

    def predict_clip(self, dataset: ClipDataset, clip: int, *, top: int = 5, batch_size: int = 32) -> Prediction:
        """Labels of a clip of a dataset, whole and with times from the start of the clip.

        Args:
            dataset: of the rate that the student was trained at; where it took every frame, 25 a second are assumed.
            clip: a row of it.
            top, batch_size: as in `predict`.

        Raises:
            TeacherError: the dataset has another rate.
            DatasetError: the clip lacks the student's modality.
            NotFiniteError: the student's output is infinite or NaN.
        """
        view, rate_hz = self.config.view, dataset.sample_rate_hz
        check_rates(dataset, view, self.config.fps, self.config.sample_rate_hz, "the student")
        items, length = dataset.read(clip, view), view.window_length(rate_hz)
        rate = getattr(dataset, view.rate) or 25.0
        found = (
            Window(
                start_seconds=start / rate,
                end_seconds=min(start + length, len(items)) / rate,
                items=view.evaluation_crop(take_window(items, start, length)),
            )
            for start in sliding_starts(len(items), length, length, align_last=view.aligned)
        )
        return self._predict(Path(str(dataset.columns["id"][clip])), found, [], top, batch_size, None)

    def _run(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = torch.from_numpy(windows).to(next(self.network.parameters()).device)
        with torch.inference_mode():
            features = self.network(self.config.view.network_input(inputs))
            multi_label = self.config.multi_label
            probabilities = features.logits.sigmoid() if multi_label else features.logits.softmax(1)
        return features.embedding.float().cpu().numpy(), probabilities.float().cpu().numpy()
