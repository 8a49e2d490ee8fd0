"""Encoders of Hugging Face's transformers as teachers: `huggingface:<hub id or folder>`.

Measured against transformers itself: AST, CLAP (its audio tower), HuBERT; CLIP (its video tower), DINOv2, ViT,
VideoMAE. Others that take a waveform, its features or images go the same way, without tokens. Code that lies
beside the weights is never run.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avdistill.errors import TeacherError
from avdistill.fsio import error_message
from avdistill.inputs import AudioInput, VideoInput, View
from avdistill.models.imagenet import renormalize_frames
from avdistill.models.torchvision_video import OutputHook
from avdistill.teachers.base import Teacher, weights_provenance
from avdistill.teachers.video import IMAGE_FRAMES, EachFrame
from avdistill.types import Features, Network, Provenance

HUGGINGFACE = "huggingface:"
# How many tokens (class, distillation) stand before the positions of the last map, by the config's model_type.
_TOKENS_BEFORE = {
    "audio-spectrogram-transformer": 2,
    "dinov2": 1,
    "hubert": 0,
    "videomae": 0,
    "vit": 1,
    "wav2vec2": 0,
}
# Classifiers whose logits are kept, by the end of the architecture's name; all others are loaded without a head.
_HEADS = {
    "ForAudioClassification": "AutoModelForAudioClassification",
    "ForSequenceClassification": "AutoModelForAudioClassification",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForVideoClassification": "AutoModelForVideoClassification",
}
# Parts that checkpoints may lack: they serve training alone, or (a pooler) are then not used.
_NOT_NEEDED = ("pooler", "mask_token", "masked_spec_embed")


class _Encoder(nn.Module):
    """A transformers model as inputs -> Features.

    The embedding is the projected pooled output of a model with two towers (CLIP's image_embeds, CLAP's audio_embeds,
    before their normalisation), else the pooled output, the class token or the mean of the last hidden state: the first
    of these that there is. A pooler that the checkpoint does not hold is random and therefore not used.
    """

    def __init__(self, model: Any, trained_pooler: bool) -> None:
        super().__init__()
        self.projection: nn.Module = nn.Identity()
        self.embedding_dim: int = getattr(model.config, "hidden_size", 0)
        self.before = _TOKENS_BEFORE.get(model.config.model_type)
        if hasattr(model, "visual_projection") or hasattr(model, "audio_projection"):  # the tower of text is dropped
            self.embedding_dim = model.config.projection_dim
            sees = hasattr(model, "visual_projection")
            self.projection = model.visual_projection if sees else model.audio_projection
            model = model.vision_model if sees else model.audio_model
        if not self.embedding_dim:
            raise ValueError(f"expected a hidden_size in its config, found none ({model.config.model_type})")
        self.model, self.trained_pooler = model, trained_pooler
        # A model with a classifier does not return its hidden state: its base model does.
        self._outputs = OutputHook()
        model.base_model.register_forward_hook(self._outputs)

    def forward(self, inputs: Tensor, **more: Tensor) -> Features:
        """inputs: what the model takes: images (B, 3, H, W), videos (B, T, 3, H, W), waveforms or spectra."""
        self._outputs.clear()
        logits = getattr(self.model(**{self.model.main_input_name: inputs}, **more), "logits", None)
        output = self._outputs.pop()
        hidden = output.last_hidden_state
        pooled = getattr(output, "pooler_output", None) if self.trained_pooler else None
        if pooled is None:
            positions = hidden if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)
            pooled = positions[:, 0] if self.before else positions.mean(1)
        embedding = self.projection(pooled.flatten(1))
        tokens = None if self.before is None else hidden[:, self.before :]
        return Features(embedding=embedding, logits=logits, tokens=tokens)


class _Video(Network):
    modality = "video"

    def __init__(self, encoder: _Encoder, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.encoder, self.embedding_dim = encoder, encoder.embedding_dim
        self.mean, self.std = mean, std

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, 3, T, H, W), normalized, with as many frames as the model has positions for."""
        return self.encoder(renormalize_frames(inputs, self.mean, self.std).transpose(1, 2))


class _Audio(Network):
    modality = "audio"

    def __init__(self, encoder: _Encoder, extractor: Any) -> None:
        super().__init__()
        self.encoder, self.extractor, self.embedding_dim = encoder, extractor, encoder.embedding_dim

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, S); the model's own extractor makes its features of it, on the CPU."""
        waveforms = list(inputs.float().cpu().numpy())
        made = self.extractor(waveforms, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        more = {}
        if "is_longer" in made:
            # No window is longer than the extractor's; it would call one of the batch, drawn at random, longer.
            more["is_longer"] = torch.zeros(len(inputs), 1, dtype=torch.bool, device=inputs.device)
        return self.encoder(made[self.encoder.model.main_input_name].to(inputs), **more)


def load_huggingface(name: str) -> Teacher:
    """The encoder at a folder or a hub id, which transformers then downloads into its own cache.

    A model of images sees 8 frames one by one, of the size its processor cuts, and the mean is taken; one of videos
    sees as many as it was made for. A model of audio hears what its extractor takes at most (AST 10.24 s, CLAP 10 s),
    others 2 s.

    Raises:
        TeacherError: transformers is not installed; nothing there, or no network to fetch it; weights that are missing
            or damaged; a model that takes neither audio nor images.
    """
    if find_spec("transformers") is None:
        raise TeacherError(f"{HUGGINGFACE}{name}: transformers is not installed: install the extra 'huggingface'")
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or not name):
        raise TeacherError(f"{HUGGINGFACE}{name}: expected a model's folder or a hub id (owner/model), found nothing")
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        model, absent = _load_model(name, config)
        encoder = _Encoder(model, trained_pooler=not any("pooler" in key for key in absent))
        kind = "audio" if _takes_audio(encoder.model) else "video"
        auto = transformers.AutoFeatureExtractor if kind == "audio" else transformers.AutoImageProcessor
        processor: Any = auto.from_pretrained(name, trust_remote_code=False)
        network, view = _hearing(encoder, processor) if kind == "audio" else _seeing(encoder, processor)
        _try(network, view, processor)
    except Exception as error:  # transformers, hub and safetensors raise many kinds; each means that it is not usable
        # What cannot be found or fetched is an OSError there.
        absent_here = isinstance(error, OSError) and not Path(name).is_dir()
        hint = "; without a network name a folder that holds its config.json, weights and preprocessor_config.json"
        told = f"cannot be loaded: {error_message(error)[:300]}{hint if absent_here else ''}"
        raise TeacherError(f"{HUGGINGFACE}{name}: {told}") from error
    classes = tuple(config.id2label[i] for i in range(config.num_labels)) if _head(config) else ()
    return Teacher(
        network=network,
        view=view,
        classes=classes,
        multi_label=getattr(config, "problem_type", None) == "multi_label_classification",
        fps=None,
        sample_rate_hz=processor.sampling_rate if kind == "audio" else 0,
        provenance=_provenance(name, config, type(model).__name__),
        any_fps=kind == "video",
        any_rate=kind == "audio",
    )


def _head(config: Any) -> str | None:
    """The Auto class of the checkpoint's classifier."""
    architecture = (config.architectures or [""])[0]
    return next((auto for suffix, auto in _HEADS.items() if architecture.endswith(suffix)), None)


def _load_model(name: str, config: Any) -> tuple[Any, set[str]]:
    """The model in float32, and the names of weights that its checkpoint does not hold and that it can do without."""
    import transformers

    auto = getattr(transformers, _head(config) or "AutoModel")
    model, report = auto.from_pretrained(name, config=config, output_loading_info=True, trust_remote_code=False)
    absent = set(report["missing_keys"])
    needed = sorted(key for key in absent if not any(part in key for part in _NOT_NEEDED))
    if needed:
        found = f"{len(needed)} missing such as {needed[0]}"
        raise ValueError(f"expected all weights of {type(model).__name__}, found {found}")
    return model.float(), absent


def _takes_audio(model: Any) -> bool:
    takes = model.main_input_name
    decodes = getattr(model.config, "is_encoder_decoder", False)
    if takes not in ("input_values", "input_features", "pixel_values") or decodes:
        found = f"{type(model).__name__}, which takes {takes}"
        raise ValueError(f"expected an encoder of audio or images, found {found}")
    return takes != "pixel_values"


def _hearing(encoder: _Encoder, extractor: Any) -> tuple[Network, AudioInput]:
    seconds = 2.0
    if encoder.model.config.model_type == "audio-spectrogram-transformer":
        seconds = extractor.max_length / 100  # in spectra of 10 ms
    elif hasattr(extractor, "max_length_s"):
        seconds = float(extractor.max_length_s)
    return _Audio(encoder, extractor), AudioInput(seconds=seconds)


def _seeing(encoder: _Encoder, processor: Any) -> tuple[Network, VideoInput]:
    wanted = processor.to_dict()
    size = wanted["crop_size"] if wanted.get("do_center_crop") else wanted["size"]
    height, width = (int(size.get(side) or size["shortest_edge"]) for side in ("height", "width"))
    # The processor computes (value of 0..255 * factor - mean) / deviation; ours are of RGB in [0, 1].
    unit = 255 * wanted["rescale_factor"] if wanted.get("do_rescale") else 255.0
    normalizes = wanted.get("do_normalize")
    mean = tuple(value / unit for value in (wanted["image_mean"] if normalizes else (0.0,) * 3))
    std = tuple(value / unit for value in (wanted["image_std"] if normalizes else (1.0,) * 3))
    frames = getattr(encoder.model.config, "num_frames", None)
    if frames is not None:
        return _Video(encoder, mean, std), VideoInput(frames=frames, size=(height, width))
    return (
        EachFrame(encoder, encoder.embedding_dim, mean, std),
        VideoInput(frames=IMAGE_FRAMES, size=(height, width)),
    )


def _try(network: Network, view: View, processor: Any) -> None:
    """Run the network once: a model that cannot take what it will be given fails here, not in the midst of a
    dataset.
    """
    inputs = view.random_inputs(1, getattr(processor, "sampling_rate", 0), np.random.default_rng(0))
    with torch.inference_mode():
        network.eval()(view.network_input(inputs))


def _provenance(name: str, config: Any, architecture: str) -> Provenance:
    weights = Path(name) / "model.safetensors"
    if weights.is_file():
        return weights_provenance(f"{architecture} of {Path(name).name}", weights)
    commit = getattr(config, "_commit_hash", None)
    return {"name": f"{architecture} of {HUGGINGFACE}{name}"} | ({"commit": commit} if commit else {})
