"""What torchrun starts in test_distributed.py; also imported there, for the same in one process.

torchrun --nproc-per-node 2 two_processes.py STORE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from avdistill import cli, distributed
from avdistill.data.dataset import TrainingBatches, clips_of_split, encode_labels
from avdistill.data.store import Store
from avdistill.methods import METHODS, CRDConfig, MNFCSCConfig, Sizes, build_method
from avdistill.models import build_model
from avdistill.training import OptimizerConfig, StudentConfig, TrainConfig, resume, train
from avdistill.types import Features, Network, PictureView

VIEW = PictureView(frames=4, size=(24, 32))
CONFIGS = {name: method.config_class() for name, method in METHODS.items()} | {
    "mnf_csc_sample": MNFCSCConfig(temperature="sample", unlabelled="pseudo_label"),
    "crd_batch": CRDConfig(negatives="batch"),
}


class Float64(Network):
    """A student in float64, so that only the rounding of another order of sums remains."""

    modality = "picture"

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.embedding_dim = network.double(), network.embedding_dim

    def forward(self, inputs: Tensor) -> Features:
        return self.network(inputs.double())


def losses_and_gradients(store: Store) -> dict[str, dict[str, Tensor]]:
    """Of every method on one batch of 12 clips, some unlabelled, some without a teacher; student statistics frozen."""
    clips = clips_of_split(store, "train")
    batch = TrainingBatches(
        store,
        clips,
        encode_labels(store, clips, store.classes),
        VIEW,
        batch_size=12,
        labelled_per_batch=None,
        use_unlabelled=True,
        teacher=store.teacher_features("sound"),
        seed=0,
        teacher_tokens=np.random.default_rng(2).random((len(store), 5, 24)).astype(np.float32),
        share=(distributed.rank(), distributed.world_size()),
    )[0].map(lambda x: x.double() if x.dtype == torch.float32 else x)
    found = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        student = Float64(build_model("shifted_frames", len(store.classes), {"width": 8, "embedding_dim": 16}))
        method = build_method(
            config, student, Sizes(len(store.classes), 24, training_clips=len(clips), batch_size=12, passes=10)
        ).double()
        model = distributed.synchronised(method, torch.device("cpu"))
        for module in method.student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        losses = model(batch)
        sum(losses.values()).backward()
        gradients = {key: p.grad for key, p in method.named_parameters()}
        found[name] = {**{k: v.detach() for k, v in losses.items()}, **gradients}
        found[name] |= {k: b.clone() for k, b in method.named_buffers() if k.startswith("filter.")}
    return found


def config(store: Path, out: Path, **changes: object) -> TrainConfig:
    return TrainConfig(
        store=store,
        out=out,
        student=StudentConfig("shifted_frames", VIEW, {"width": 8, "embedding_dim": 16}),
        method=MNFCSCConfig(),
        teacher="sound",
        batch_size=6,
        validation_fraction=0.3,
        accumulate=2,
        optimizer=OptimizerConfig("adamw", 1e-2, 1e-2, "plateau", clip_norm=1.0),
        validate_every=4,
        log_every=1,
        device="cpu",
        **{"steps": 10, "save_every": 3, **changes},  # type: ignore[arg-type]
    )


def main(store: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        found = losses_and_gradients(Store(store))
        if distributed.rank() == 0:
            torch.save(found, out / "gradients.pt")
    train(config(store, out / "whole"))
    train(config(store, out / "halves"), stop_after=5)
    resume(out / "halves")
    for verb in ("evaluate", "retrieve"):
        assert cli.main([verb, str(out / "whole"), str(store), "--json", "--out", str(out / verb)]) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
