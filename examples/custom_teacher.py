"""A teacher of your own: any frozen network of audio or video whose embeddings a student may learn from.

python examples/custom_teacher.py --dataset DATASET

The features are stored in the dataset under the name "spectrum"; `avdistill train RECIPE --teacher spectrum ...` and
`avdistill teacher probe DATASET --teacher spectrum` take them from there. This teacher has no weights: it describes the
audio by its spectrum. Yours loads a file; put its checksum into `provenance`, so that a run knows what it learned from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from avdistill import AudioInput, ClipDataset, Features, embed
from avdistill.teachers.base import Teacher
from avdistill.types import Network


class Spectrum(Network):
    """Mean and deviation over time of the logarithmic spectrum, in bands: 2 x `bands` numbers for a window."""

    modality = "audio"

    def __init__(self, bands: int = 32) -> None:
        super().__init__()
        self.bands, self.embedding_dim = bands, 2 * bands
        self.register_buffer("window", torch.hann_window(512), persistent=False)

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, S), a waveform in [-1, 1]."""
        window = self.get_buffer("window")
        spectrum = torch.stft(inputs, 512, 256, window=window, return_complex=True).abs()  # (B, 257, frames)
        bands = torch.nn.functional.adaptive_avg_pool1d(spectrum.transpose(1, 2), self.bands).add(1e-4).log()
        return Features(embedding=torch.cat([bands.mean(1), bands.std(1)], 1))


def spectrum_teacher(sample_rate_hz: int) -> Teacher:
    """The teacher for audio of a rate; without classes of its own, `embed` fits a linear head on the labeled clips."""
    return Teacher(
        network=Spectrum().eval(),
        view=AudioInput(seconds=1.0),
        classes=(),
        multi_label=False,
        fps=None,
        sample_rate_hz=sample_rate_hz,
        provenance={"name": "spectrum of examples/custom_teacher.py", "bands": 32},
    )


def main() -> None:
    """Store the teacher's features of every clip."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", type=Path, required=True)
    dataset = ClipDataset(parser.parse_args().dataset)
    entry = embed(dataset, spectrum_teacher(dataset.sample_rate_hz), "spectrum")
    print(f"teacher {entry.name!r}: {entry.clips} of {len(dataset)} clips")


if __name__ == "__main__":
    main()
