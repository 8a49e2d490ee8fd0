"""Recipes: complete configs by name; options of `avdistill train RECIPE` change them.

The ucf51 and activitynet recipes are the paper's (Xia et al. 2023, section 4.1 and the released commands;
docs/tasks/ucf51.md), with epochs written as optimizer steps. A recipe that names no method has our own, `robust_csc`.
The `demo` ones are what `avdistill demo` runs.
"""

from dataclasses import replace
from pathlib import Path

from avdistill.inputs import AudioInput, VideoInput
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.robust_csc import RobustCSCConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.training.config import ModelConfig, OptimizerConfig, TrainConfig

_UNSET = Path()

# 4892 training clips in batches of 32 are 153 steps an epoch, 200 epochs; both rates x0.1 at epoch 150. The release
# picks its best model on the test split; here a tenth of the training videos is held out for that.
_UCF51 = TrainConfig(
    dataset=_UNSET,
    out=_UNSET,
    student=ModelConfig("r2plus1d_xia2023", VideoInput(frames=16, size=(112, 112))),
    teacher="audio",
    steps=30_600,
    batch_size=32,
    optimizer=OptimizerConfig("adam", 3e-4, 5e-4, "multistep", milestones=(0.75,)),
    eval_every=765,
    save_every=765,
    workers=2,
)
# A student of 0.8 M parameters on 8 frames, for two cores: a quarter of an hour a run. Not from the paper.
_UCF51_SMALL = replace(
    _UCF51,
    student=ModelConfig(
        "shifted_frames", VideoInput(frames=8, size=(56, 56), scale=(0.25, 1.0)), {"embedding_dim": 256}
    ),
    val_fraction=0.0,
    steps=1200,
    optimizer=OptimizerConfig("adamw", 1e-3, 1e-2, "cosine", warmup_steps=50, max_grad_norm=5.0),
    eval_every=10_000,
    save_every=400,
    workers=0,
)
# From ImageNet's weights, on four frames: the better student where the package with the weights is installed
# (docs/results/ucf51.md). With the first blocks frozen, larger frames cost no more. Not from the paper.
_UCF51_PRETRAINED = replace(
    _UCF51_SMALL,
    student=ModelConfig(
        "efficientnet_lite0",
        VideoInput(frames=4, size=(96, 96), scale=(0.25, 1.0)),
        {"pretrained": True, "frozen_blocks": 11},
    ),
    steps=200,
    optimizer=replace(_UCF51_SMALL.optimizer, learning_rate=3e-4),
    save_every=100,
)
# 15,410 training segments in batches of 64 are 241 steps an epoch.
_ACTIVITYNET = replace(_UCF51, steps=48_200, batch_size=64, eval_every=1205, save_every=1205)
# The narrow student for machines without an accelerator; not from the paper.
_TINY = replace(
    _UCF51,
    student=ModelConfig("tiny_r2plus1d", VideoInput(frames=16, size=(64, 64))),
    steps=3000,
    optimizer=OptimizerConfig("adamw", 1e-3, 1e-2, "cosine", warmup_steps=50),
    eval_every=300,
    save_every=300,
    workers=0,
)
# An audio network on labeled clips, as a teacher: `avdistill teacher train`.
_AUDIO_TEACHER = TrainConfig(
    dataset=_UNSET,
    out=_UNSET,
    student=ModelConfig("logmel_cnn", AudioInput(seconds=2.0)),
    train_split="teacher",
    steps=1500,
    batch_size=64,
    optimizer=OptimizerConfig("adamw", 2e-3, 1e-2, "cosine", warmup_steps=50),
    eval_every=150,
    save_every=300,
)
# Not from a paper: the ActivityNet recipe with a cosine schedule, about 20 epochs of VGGSound's and 60 of
# Kinetics-Sounds' training clips.
_VGGSOUND = replace(
    _ACTIVITYNET,
    optimizer=OptimizerConfig("adamw", 1e-3, 1e-2, "cosine", warmup_steps=500),
    steps=55_000,
    eval_every=2500,
    save_every=2500,
)
_KINETICS_SOUNDS = replace(_VGGSOUND, steps=20_000, eval_every=1000, save_every=1000)
# An audio student with a video teacher. Not from a paper.
_AUDIOSET_TAGGING = replace(
    _VGGSOUND,
    student=ModelConfig("cnn10", AudioInput(seconds=10.0)),
    teacher="video",
    steps=20_000,
    batch_size=32,
    eval_every=1000,
    validation_windows=1,
    save_every=1000,
)
# What `avdistill demo` runs, on one core each; not from the paper. Few labels, many unlabeled clips with audio. Frames
# are channels of a 2-D network: the cheapest student, so that all of them end within minutes.
_DEMO = TrainConfig(
    dataset=_UNSET,
    out=_UNSET,
    student=ModelConfig(
        "stacked_frames",
        VideoInput(frames=8, size=(28, 36), scale=(0.7, 1.0)),
        {"frames": 8, "width": 16, "embedding_dim": 64},
    ),
    teacher="audio",
    val_fraction=0.0,
    steps=600,
    batch_size=32,
    labeled_per_batch=12,
    optimizer=OptimizerConfig("adamw", 3e-3, 1e-2, "cosine", warmup_steps=20, max_grad_norm=5.0),
)
_DEMO_TEACHER = replace(
    _AUDIO_TEACHER,
    student=ModelConfig("logmel_cnn", AudioInput(seconds=2.0), {"width": 16, "bands": 40, "embedding_dim": 128}),
    val_fraction=0.0,
    steps=250,
    batch_size=32,
)
_DEMO_MNF = MNFCSCConfig(unlabeled="unused", calibration_weight=0.3)


def _each_method(task: str, base: TrainConfig, mnf: MNFCSCConfig, kd: KDConfig | None = None) -> dict[str, TrainConfig]:
    """`task` with the default method, and `task`_`method` with others."""
    return {
        task: replace(base, method=RobustCSCConfig(threshold=mnf.threshold)),
        f"{task}_supervised": replace(base, method=SupervisedConfig(), teacher=None),
        f"{task}_kd": replace(base, method=kd or KDConfig()),
        f"{task}_mnf_csc": replace(base, method=mnf),
    }


RECIPES: dict[str, TrainConfig] = {
    **_each_method("ucf51", _UCF51, MNFCSCConfig(threshold=0.07)),
    **_each_method("ucf51_small", _UCF51_SMALL, MNFCSCConfig()),
    **_each_method("ucf51_pretrained", _UCF51_PRETRAINED, MNFCSCConfig()),
    **_each_method("activitynet", _ACTIVITYNET, MNFCSCConfig(threshold=0.2)),
    **_each_method("vggsound", _VGGSOUND, MNFCSCConfig()),
    **_each_method("kinetics_sounds", _KINETICS_SOUNDS, MNFCSCConfig()),
    **_each_method("audioset_tagging", _AUDIOSET_TAGGING, MNFCSCConfig()),
    **_each_method("tiny", _TINY, MNFCSCConfig(unlabeled="unused")),
    **_each_method("demo", _DEMO, _DEMO_MNF, KDConfig(temperature=2.0)),
    "demo_teacher": _DEMO_TEACHER,
    "audio_teacher": _AUDIO_TEACHER,
}
