"""The table of networks by name, and `build_model`."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial

import torch

from avdistill.config_io import decode
from avdistill.errors import ConfigError
from avdistill.models.efficientnet_lite import EfficientNetLite0Frames
from avdistill.models.frame_cnn import ShiftedFrames, StackedFrames
from avdistill.models.logmel_cnn import LogMelCNN
from avdistill.models.panns import cnn6, cnn10, cnn14, panns_mobilenet_v1
from avdistill.models.r2plus1d import r2plus1d_xia2023, tiny_r2plus1d
from avdistill.models.timm_frames import TIMM, TimmFrames
from avdistill.models.torchvision_video import NETWORKS, TorchvisionVideo
from avdistill.models.yamnet import YAMNet
from avdistill.types import Option, StudentNetwork

MODELS: dict[str, Callable[..., StudentNetwork]] = {
    "cnn6": cnn6,
    "cnn10": cnn10,
    "cnn14": cnn14,
    **{f"cnn14_emb{D}": partial(cnn14, embedding_dim=D) for D in (512, 128, 32)},
    "efficientnet_lite0": EfficientNetLite0Frames,
    "logmel_cnn": LogMelCNN,
    "panns_mobilenet_v1": panns_mobilenet_v1,
    "r2plus1d_xia2023": r2plus1d_xia2023,
    "shifted_frames": ShiftedFrames,
    "stacked_frames": StackedFrames,
    "tiny_r2plus1d": tiny_r2plus1d,
    "yamnet": YAMNet,
    **{f"torchvision:{name}": partial(TorchvisionVideo, network=name) for name in NETWORKS},
}


# Options that choose the weights to start from; a network whose own weights are saved does without them.
INITIAL_WEIGHTS = ("pretrained", "weights")
# Students are compact; 10^9 parameters take 4 GB, and four times as much in training.
LARGEST_MODEL = 10**9


def build_model(name: str, num_classes: int, options: Mapping[str, Option] | None = None) -> StudentNetwork:
    """Build a network with random weights.

    Args:
        name: a key of `MODELS`, or `timm:` and the name of one of timm's networks.
        num_classes: C, columns of the logits.
        options: further arguments of the network's constructor, by name.

    Raises:
        ConfigError: an unknown name; an option that is unknown, of a wrong type, or refused by the network.
    """
    if name.startswith(TIMM):
        constructor: Callable[..., StudentNetwork] = partial(TimmFrames, network=name.removeprefix(TIMM))
    elif name in MODELS:
        constructor = MODELS[name]
    else:
        raise ConfigError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}, {TIMM}<network>")
    # Checked against the signature: a TypeError of the constructor is then a real one.
    fixed = constructor.keywords if isinstance(constructor, partial) else {}
    parameters = inspect.signature(constructor, eval_str=True).parameters
    kinds = {key: p.annotation for key, p in parameters.items() if key != "num_classes" and key not in fixed}
    checked = {}
    for key, value in (options or {}).items():
        if key not in kinds:
            raise ConfigError(f"model {name!r}: unknown option {key!r}; known: {', '.join(kinds) or 'none'}")
        untyped = kinds[key] is inspect.Parameter.empty
        checked[key] = value if untyped else decode(kinds[key], value, f"model {name!r}: {key}")
    if large := [key for key, value in checked.items() if isinstance(value, int) and abs(value) > 2**20]:
        raise ConfigError(f"model {name!r}: {large[0]}: expected at most {2**20}, found {checked[large[0]]}")
    try:
        plain = {key: value for key, value in checked.items() if key not in INITIAL_WEIGHTS}
        parameters_needed = _parameters(partial(constructor, num_classes=num_classes, **plain))
        if parameters_needed > LARGEST_MODEL:
            raise ValueError(f"expected at most {LARGEST_MODEL} parameters, found {parameters_needed}")
        model = constructor(num_classes=num_classes, **checked)
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise ConfigError(f"model {name!r}: {error}") from error
    except RuntimeError as error:  # PyTorch's, of sizes that no tensor has
        raise ConfigError(f"model {name!r}: {str(error).splitlines()[0]:.160}") from error
    # 2-D convolutions are 1.3 to 2 times faster on CPUs with channels last; the values are equal. Not by `contiguous`:
    # it leaves a first convolution of one channel, a spectrogram's, as it is, and with it the layout of the rest.
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


def _parameters(build: Callable[[], torch.nn.Module]) -> int:
    """The number of parameters of a network, without memory for them; 0 where it reads values as it is built.

    Our networks create their constants on the CPU explicitly: arithmetic on the meta device goes through PyTorch's
    Python decompositions, which import its compiler (two seconds).
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return sum(p.numel() for p in build().parameters())
    except RuntimeError as error:
        if "meta tensor" in str(error):  # networks of older timm
            return 0
        raise
