"""torchvision's video networks as students and teachers."""

from typing import Any

from torch import Tensor, nn

from avdistill.types import StudentFeatures, StudentNetwork

# By name: the module of the last feature map, that of the classifier, and the map's layout.
NETWORKS = {
    **dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18"), ("layer4", "fc", "first")),
    "s3d": ("features", "classifier", "first"),
    **dict.fromkeys(("mvit_v1_b", "mvit_v2_s"), ("norm", "head", "tokens")),
    **dict.fromkeys(("swin3d_t", "swin3d_s", "swin3d_b"), ("norm", "head", "last")),
}


class OutputHook(list[Any]):
    """A forward hook that keeps outputs. It is copied and pickled with its network, which a closure cannot be."""

    def __call__(self, _module: nn.Module, _inputs: object, output: Any) -> None:
        """Keep the output of the module."""
        self.append(output)


class TorchvisionVideo(StudentNetwork):
    """A torchvision video network with a new classifier; the tokens are the positions of its last feature map."""

    modality = "video"

    def __init__(self, num_classes: int, network: str, pretrained: bool = False) -> None:
        """Build the network.

        Args:
            network: a name of torchvision.models.video, such as "r2plus1d_18" or "mvit_v2_s".
            pretrained: start from the Kinetics-400 weights, which torchvision downloads on first use.

        Raises:
            ValueError: unknown network.
        """
        super().__init__()
        import torchvision.models.video as networks

        if network not in NETWORKS:
            raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, found {network!r}")
        map_name, head_name, self._layout = NETWORKS[network]
        self.backbone: Any = getattr(networks, network)(weights="KINETICS400_V1" if pretrained else None)
        head = getattr(self.backbone, head_name)
        last = [m for m in head.modules() if isinstance(m, nn.Linear | nn.Conv3d)][-1]
        self.embedding_dim = int(last.in_features if isinstance(last, nn.Linear) else last.in_channels)
        setattr(self.backbone, head_name, nn.Identity())
        if network == "s3d":  # its pooling window is made for 224 pixels; the mean equals it at that size and fits all
            self.backbone.avgpool = nn.AdaptiveAvgPool3d(1)
        self.classifier = nn.Linear(self.embedding_dim, num_classes)
        self._map = OutputHook()
        getattr(self.backbone, map_name).register_forward_hook(self._map)

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """inputs: float (B, 3, T, H, W), normalized, of the network's own size (MViT: 16 frames of 224 x 224)."""
        self._map.clear()
        embedding = self.backbone(inputs).flatten(1)
        x = self._map.pop()
        if self._layout == "first":
            tokens = x.flatten(2).transpose(1, 2)
        else:  # MViT's first token is the class token
            tokens = x.flatten(1, 3) if self._layout == "last" else x[:, 1:]
        return StudentFeatures(embedding=embedding, logits=self.classifier(embedding), tokens=tokens)
