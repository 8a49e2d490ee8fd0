"""A network of your own as a student: one class, one line that registers it, and everything else works with it.

python examples/custom_student.py --dataset DATASET --out RUN [--steps 200]

The dataset needs a teacher's features under the name "audio" (`avdistill embed`). The command line does not know the
network: a program that loads the run registers it first, as this one does by its import.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from avdistill import MODELS, RECIPES, ModelConfig, Student, VideoInput, evaluate, train
from avdistill.types import StudentFeatures, StudentNetwork


class FrameDifferences(StudentNetwork):
    """A small 2-D network on the differences between neighboring frames: it sees what moves, and nothing else."""

    modality = "video"

    def __init__(self, num_classes: int, width: int = 16, embedding_dim: int = 64) -> None:
        """Args: num_classes: C; width: channels of the first layer; embedding_dim: D."""
        super().__init__()
        self.embedding_dim = embedding_dim
        layers: list[nn.Module] = []
        for channels, out in ((3, width), (width, 2 * width), (2 * width, embedding_dim)):
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(embedding_dim, num_classes)

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """inputs: float (B, 3, T, H, W), normalized. Tokens: the positions of the last feature map, for AT and NST."""
        B, T = inputs.shape[0], inputs.shape[2] - 1
        differences = inputs.diff(dim=2).transpose(1, 2).flatten(0, 1)
        positions = self.layers(differences).flatten(2).unflatten(0, (B, T))  # (B, T - 1, D, height * width)
        tokens = positions.permute(0, 1, 3, 2).flatten(1, 2)
        embedding = tokens.mean(1)
        return StudentFeatures(embedding=embedding, logits=self.classifier(embedding), tokens=tokens)


MODELS["frame_differences"] = FrameDifferences


def main() -> None:
    """Distill into the network, evaluate it, and load it again as any other student."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    student = ModelConfig("frame_differences", VideoInput(frames=8, size=(28, 36)), {"width": 16})
    recipe = replace(RECIPES["demo"], student=student, steps=arguments.steps)
    run = train(replace(recipe, dataset=arguments.dataset, out=arguments.out))
    print(f"top-1 on the test clips: {evaluate(run, arguments.dataset).metrics.to_dict()['top1_accuracy']:.3f}")
    again = Student.from_pretrained(run)
    print(f"{again.config.model}: {sum(p.numel() for p in again.network.parameters())} parameters")


if __name__ == "__main__":
    main()
