"""Networks of images from the package timm, applied to every frame of a video: students, and video teachers."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from avdistill.models.each_frame import EachFrame
from avdistill.models.frame_cnn import shift_channels
from avdistill.models.weights import load_torch_file
from avdistill.types import Features, StudentFeatures, StudentNetwork

TIMM = "timm:"


class TimmImages(nn.Module):
    """A network of images (N, 3, H, W), in its own normalization -> `Features`.

    Tokens are the positions of the last feature map where they have the embedding's channels. Some networks widen the
    map's mean by another layer: there the embedding is the one token.

    Attributes:
        config: timm's description of the network: `mean`, `std`, `input_size`, `license` and more.
    """

    def __init__(self, name: str) -> None:
        """Build it with random weights and without a classifier.

        Args:
            name: timm's, such as "mobilenetv3_small_050", with a tag for weights: "resnet18.a1_in1k".

        Raises:
            ValueError: timm is not installed, or does not know the name.
        """
        super().__init__()
        self.name, self.network = name, _create(name)
        self.config: dict[str, Any] = self.network.pretrained_cfg
        self.embedding_dim = int(getattr(self.network, "head_hidden_size", None) or self.network.num_features)

    def forward(self, images: Tensor) -> Features:
        """The embedding is the input of timm's classifier."""
        x = self.network.forward_features(images)
        embedding = self.network.forward_head(x, pre_logits=True)
        return Features(embedding=embedding, tokens=self._tokens(x, embedding))

    def _tokens(self, x: Tensor, embedding: Tensor) -> Tensor:
        channels = self.network.num_features
        if channels != self.embedding_dim:
            return embedding[:, None]
        if x.ndim == 3:  # (N, prefix + positions, channels)
            return x[:, getattr(self.network, "num_prefix_tokens", 0) :]
        first = x.shape[1] == channels
        return x.flatten(2).transpose(1, 2) if first else x.flatten(1, 2)

    def load(self, weights: str | Path = "") -> None:
        """Load pretrained weights.

        Args:
            weights: a file of timm's (.safetensors, or .pth without code in it); "" takes those of the name from the
                Hugging Face hub or its cache.

        Raises:
            ValueError: no weights are published under the name, or the hub cannot be reached.
            CheckpointError: the file cannot be read or does not fit.
        """
        if weights:
            heads = self.config["classifier"]
            heads = (heads,) if isinstance(heads, str) else heads
            load_torch_file(self.network, Path(weights), unused=tuple(f"{head}." for head in heads))
            return
        published = self.config.get("hf_hub_id")
        if not published:
            raise ValueError(f"pretrained: timm publishes no weights of {self.name!r}; give a file")
        logging.getLogger(__name__).info("%s%s: weights of %s, from the cache or the hub", TIMM, self.name, published)
        from timm.models import load_pretrained

        try:
            load_pretrained(self.network, num_classes=0)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"pretrained: {published} cannot be had ({reason:.200}); give a file") from error


class _Shift:
    """A hook before a stage of a network of frames: temporal shift (Lin, Gan and Han, ICCV 2019).

    The paper shifts within each residual block. At the input of a stage a shift is possible in any network.
    """

    frames = 1

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (shift_channels(inputs[0], self.frames), *inputs[1:])


class TimmFrames(StudentNetwork):
    """A student: a timm network on each frame, the mean over the frames, and a new classifier."""

    modality = "video"

    def __init__(
        self, num_classes: int, network: str, pretrained: bool = False, weights: str = "", shift: bool = False
    ) -> None:
        """Build the network.

        Args:
            num_classes: C.
            network: timm's name.
            pretrained: start from the published weights (Hugging Face hub).
            weights: start from this file instead.
            shift: temporal shift before each stage but the first; only for networks of convolutions.

        Raises:
            ValueError: see `TimmImages`; `shift` for a network without stages of convolutions.
        """
        super().__init__()
        images = TimmImages(network)
        if pretrained or weights:
            images.load(weights)
        self.embedding_dim = images.embedding_dim
        self.frames_mean = EachFrame(images, images.embedding_dim, images.config["mean"], images.config["std"])
        self.classifier = nn.Linear(images.embedding_dim, num_classes)
        self._shift = _Shift()
        if shift:
            if isinstance(getattr(images.network, "patch_embed", None), nn.Module):
                raise ValueError(f"shift: expected a network of convolutions, found {network!r}")
            for stage in images.network.feature_info[1:]:
                images.network.get_submodule(stage["module"]).register_forward_pre_hook(self._shift)

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """inputs: float (B, 3, T, H, W), normalized."""
        self._shift.frames = inputs.shape[2]
        features = self.frames_mean(inputs)
        logits = self.classifier(features.embedding)
        return StudentFeatures(embedding=features.embedding, logits=logits, tokens=features.tokens)


def _create(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError("expected the package timm, found none: pip install timm") from None
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0]}*")[:5])
        raise ValueError(f"expected a name of timm's{near and f', such as {near}'}")
    network = timm.create_model(name, pretrained=False, num_classes=0)
    if hasattr(network, "dynamic_img_size"):  # a transformer that can interpolate its positions to any size
        network = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    return network
