"""A whole run without `train()`: what happens between a dataset and a better small network, in one page.

python examples/train_by_hand.py --dataset DATASET [--steps 200]

The dataset needs a teacher's features under the name "audio" (`avdistill embed`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from avdistill.dataset.batches import TrainingBatches
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_split, encode_labels
from avdistill.evaluation.metrics import top_k_accuracy
from avdistill.inference.runner import run_network
from avdistill.inputs import VideoInput
from avdistill.methods import MethodContext, build_method
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.models.registry import build_model


def main() -> None:
    """Train a tiny student with MNF + CSC and print its accuracy on the test split."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    # The data: labeled and unlabeled clips of the training split, with the teacher's features beside them.
    dataset = ClipDataset(arguments.dataset)
    clips = clips_of_split(dataset, "train")
    view = VideoInput(frames=8, size=(32, 40), scale=(0.5, 1.0))
    teacher = dataset.features("audio")
    batches = TrainingBatches(
        dataset,
        clips,
        encode_labels(dataset, clips, dataset.classes),
        view,
        batch_size=16,
        labeled_per_batch=8,
        use_unlabeled=True,
        teacher=teacher,
        seed=0,
    )

    # The method owns the student and the noise filter; the teacher stays frozen in the dataset.
    student = build_model("shifted_frames", len(dataset.classes))
    context = MethodContext(num_classes=len(dataset.classes), teacher_dim=teacher.embedding.shape[1])
    method = build_method(MNFCSCConfig(), student, context).train()
    groups = [{"params": g["params"], "lr": 2e-3 * g["lr_scale"]} for g in method.parameter_groups()]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)

    # The loop: named losses, one backward pass.
    for step in range(arguments.steps):
        losses = method(batches[step])
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(step, "  ".join(f"{name} {float(value.detach()):.3f}" for name, value in losses.items()))

    # Top-1 accuracy: every window of every test clip, softmax averaged per clip. The test needs no audio.
    test = clips_of_split(dataset, "test")
    outputs = run_network(student, dataset, test, view)
    labels = encode_labels(dataset, test, dataset.classes).values
    print(f"top-1 on {len(test)} test clips: {top_k_accuracy(scores=outputs.probabilities, labels=labels, k=1):.3f}")


if __name__ == "__main__":
    main()
