"""What each of two processes runs in test_distributed.py; also imported there, for the same in one process.

RANK=0|1 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... two_processes.py DATASET OUT
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from avdistill import cli, distributed
from avdistill.dataset.batches import TrainingBatches
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_split, encode_labels
from avdistill.inputs import VideoInput
from avdistill.methods import METHODS, MethodContext, build_method
from avdistill.methods.crd import CRDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.models.registry import build_model
from avdistill.training import ModelConfig, OptimizerConfig, TrainConfig, resume, train
from avdistill.types import Features, Network

VIEW = VideoInput(frames=4, size=(24, 32))
CONFIGS = {name: method.config_class() for name, method in METHODS.items()} | {
    "mnf_csc_sample": MNFCSCConfig(temperature="sample", unlabeled="pseudo_label"),
    "crd_batch": CRDConfig(negatives="batch"),
}


class Float64(Network):
    """A student in float64, so that only the rounding of another order of sums remains."""

    modality = "video"

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.embedding_dim = network.double(), network.embedding_dim

    def forward(self, inputs: Tensor) -> Features:
        return self.network(inputs.double())


SYNCED = ("supervised", "mnf_csc", "at")


def losses_and_gradients(dataset: ClipDataset, *, synced: bool = False) -> dict[str, dict[str, Tensor]]:
    """Of every method on one batch of 12 clips, some unlabeled, some without a teacher; student statistics frozen.

    With `synced`, of some methods with the student's statistics of the batch, taken over all processes.
    """
    clips = clips_of_split(dataset, "train")
    tokens = np.random.default_rng(2).random((len(dataset), 5, 24)).astype(np.float32)
    batch = TrainingBatches(
        dataset,
        clips,
        encode_labels(dataset, clips, dataset.classes),
        VIEW,
        batch_size=12,
        labeled_per_batch=None,
        use_unlabeled=True,
        teacher=replace(dataset.features("audio"), tokens=tokens),
        seed=0,
        share=(distributed.rank(), distributed.world_size()),
    )[0].map(lambda x: x.double() if x.dtype == torch.float32 else x)
    found = {}
    for name, config in {name: CONFIGS[name] for name in (SYNCED if synced else CONFIGS)}.items():
        torch.manual_seed(0)
        student = Float64(build_model("shifted_frames", len(dataset.classes), {"width": 8, "embedding_dim": 16}))
        if synced:
            distributed.sync_batchnorm(student, torch.device("cpu"))
        method = build_method(
            config,
            student,
            MethodContext(len(dataset.classes), 24, training_clips=len(clips), batch_size=12, total_iterations=10),
        ).double()
        model = distributed.wrap_ddp(method, torch.device("cpu"))
        assert not getattr(model, "broadcast_buffers", False)  # memories would travel at each forward pass
        for module in method.student.modules():
            if isinstance(module, nn.BatchNorm2d) and not synced:
                module.eval()
        losses = model(batch)
        sum(losses.values()).backward()
        gradients = {key: p.grad for key, p in method.named_parameters()}
        found[name] = {**{k: v.detach() for k, v in losses.items()}, **gradients}
        found[name] |= {k: b.clone() for k, b in method.named_buffers() if k.startswith("filter.")}
        found[name] |= {k: b.clone() for k, b in method.named_buffers() if synced and k.startswith("student.")}
    return found


def config(dataset: Path, out: Path, **changes: object) -> TrainConfig:
    return TrainConfig(
        dataset=dataset,
        out=out,
        student=ModelConfig("shifted_frames", VIEW, {"width": 8, "embedding_dim": 16}),
        method=MNFCSCConfig(),
        teacher="audio",
        batch_size=6,
        val_fraction=0.3,
        gradient_accumulation_steps=2,
        optimizer=OptimizerConfig("adamw", 1e-2, 1e-2, "plateau", max_grad_norm=1.0),
        eval_every=4,
        log_every=1,
        device="cpu",
        **{"steps": 10, "save_every": 3, **changes},  # type: ignore[arg-type]
    )


def main(dataset: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with distributed.init_distributed("cpu"):
        found = losses_and_gradients(ClipDataset(dataset))
        synced = losses_and_gradients(ClipDataset(dataset), synced=True)
        if distributed.rank() == 0:
            torch.save(found, out / "gradients.pt")
            torch.save(synced, out / "synced.pt")
    train(config(dataset, out / "whole"))
    train(config(dataset, out / "halves"), stop_after=5)
    resume(out / "halves")
    for verb in ("evaluate", "retrieve"):
        assert cli.main([verb, str(out / "whole"), str(dataset), "--json", "--out", str(out / verb)]) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
