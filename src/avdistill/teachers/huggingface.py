"""Encoders of Hugging Face's transformers as teachers: `huggingface:<hub id or folder>`.

Tested against transformers: AST, CLAP (audio tower), HuBERT; CLIP (image tower), DINOv2, ViT, VideoMAE. Other models of
waveforms, audio features or images work the same way, without tokens. Code beside the weights is never run.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avdistill.dataset.stored_features import Provenance
from avdistill.errors import TeacherError
from avdistill.fsio import error_message
from avdistill.inputs import AudioInput, VideoInput, View
from avdistill.models.each_frame import EachFrame, Renormalized
from avdistill.models.torchvision_video import OutputHook
from avdistill.teachers.base import Teacher, weights_provenance
from avdistill.teachers.video import IMAGE_FRAMES
from avdistill.types import Features, Network

HUGGINGFACE = "huggingface:"
# Number of special tokens (class, distillation) before the positions, by the config's model_type.
_SPECIAL_TOKENS = {"audio-spectrogram-transformer": 2, "dinov2": 1, "hubert": 0, "videomae": 0, "vit": 1, "wav2vec2": 0}
# Classifiers whose logits are kept, by the suffix of the architecture; others are loaded without a head.
_HEADS = {
    "ForAudioClassification": "AutoModelForAudioClassification",
    "ForSequenceClassification": "AutoModelForAudioClassification",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForVideoClassification": "AutoModelForVideoClassification",
}
# Weights that checkpoints may lack: needed in training only, or (a pooler) then unused.
_OPTIONAL = ("pooler", "mask_token", "masked_spec_embed")


class _Encoder(nn.Module):
    """A transformers model as inputs -> Features.

    The embedding is the projected pooled output of a model with two towers (CLIP's image_embeds, CLAP's audio_embeds,
    before normalization), else the first available of: pooled output, class token, mean of the last hidden state. A
    pooler that the checkpoint lacks is random and not used.
    """

    def __init__(self, model: Any, trained_pooler: bool) -> None:
        super().__init__()
        self.projection: nn.Module = nn.Identity()
        self.embedding_dim: int = getattr(model.config, "hidden_size", 0)
        self.special_tokens = _SPECIAL_TOKENS.get(model.config.model_type)
        if hasattr(model, "visual_projection") or hasattr(model, "audio_projection"):  # the text tower is dropped
            self.embedding_dim = model.config.projection_dim
            visual = hasattr(model, "visual_projection")
            self.projection = model.visual_projection if visual else model.audio_projection
            model = model.vision_model if visual else model.audio_model
        if not self.embedding_dim:
            raise ValueError(f"expected a hidden_size in its config, found none ({model.config.model_type})")
        self.model, self.trained_pooler = model, trained_pooler
        # A model with a classifier does not return its hidden state: its base model does.
        self._outputs = OutputHook()
        model.base_model.register_forward_hook(self._outputs)

    def forward(self, inputs: Tensor, **more: Tensor) -> Features:
        """inputs: the model's main input: images (B, 3, H, W), videos (B, T, 3, H, W), waveforms or spectrograms."""
        self._outputs.clear()
        logits = getattr(self.model(**{self.model.main_input_name: inputs}, **more), "logits", None)
        output = self._outputs.pop()
        hidden = output.last_hidden_state
        pooled = getattr(output, "pooler_output", None) if self.trained_pooler else None
        if pooled is None:
            positions = hidden if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)
            pooled = positions[:, 0] if self.special_tokens else positions.mean(1)
        embedding = self.projection(pooled.flatten(1))
        tokens = None if self.special_tokens is None else hidden[:, self.special_tokens :]
        return Features(embedding=embedding, logits=logits, tokens=tokens)


class _Video(Renormalized):
    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, 3, T, H, W), normalized, with the number of frames of the config."""
        return self.network(self.renormalized(inputs).transpose(1, 2))


class _Audio(Network):
    modality = "audio"

    def __init__(self, encoder: _Encoder, extractor: Any) -> None:
        super().__init__()
        self.encoder, self.extractor, self.embedding_dim = encoder, extractor, encoder.embedding_dim

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, S) mono; the model's feature extractor runs on the CPU."""
        waveforms = list(inputs.float().cpu().numpy())
        extracted = self.extractor(waveforms, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        more = {}
        if "is_longer" in extracted:
            # No window is longer than the extractor's, which marks a random one of the batch as longer all the same.
            more["is_longer"] = torch.zeros(len(inputs), 1, dtype=torch.bool, device=inputs.device)
        return self.encoder(extracted[self.encoder.model.main_input_name].to(inputs), **more)


def load_huggingface(name: str) -> Teacher:
    """The encoder at a folder or a hub id, which transformers downloads into its cache.

    The window of an image model is 8 frames of its processor's size, whose outputs are averaged, that of a video model
    the number of frames in its config, that of an audio model the extractor's maximum (AST 10.24 s, CLAP 10 s) or 2 s.

    Raises:
        TeacherError: transformers is not installed; the model is not found or cannot be downloaded; its weights are
            incomplete or damaged; its input is neither audio nor images.
    """
    if find_spec("transformers") is None:
        raise TeacherError(f"{HUGGINGFACE}{name}: transformers is not installed: install the extra 'huggingface'")
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or not name):
        raise TeacherError(f"{HUGGINGFACE}{name}: expected a folder or a hub id (owner/model), found neither")
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        model, absent = _load_model(name, config)
        encoder = _Encoder(model, trained_pooler=not any("pooler" in key for key in absent))
        kind = "audio" if _takes_audio(encoder.model) else "video"
        auto = transformers.AutoFeatureExtractor if kind == "audio" else transformers.AutoImageProcessor
        processor: Any = auto.from_pretrained(name, trust_remote_code=False)
        network, view = _audio_network(encoder, processor) if kind == "audio" else _video_network(encoder, processor)
        _check_forward(network, view, processor)
    except Exception as error:  # transformers, hub and safetensors raise many kinds
        # Not found and not downloaded are OSErrors.
        not_found = isinstance(error, OSError) and not Path(name).is_dir()
        hint = "; offline, name a folder with config.json, weights and preprocessor_config.json"
        message = f"cannot be loaded: {error_message(error)[:300]}{hint if not_found else ''}"
        raise TeacherError(f"{HUGGINGFACE}{name}: {message}") from error
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
    """The model in float32, and the names of the optional weights that its checkpoint lacks."""
    import transformers

    auto = getattr(transformers, _head(config) or "AutoModel")
    model, report = auto.from_pretrained(name, config=config, output_loading_info=True, trust_remote_code=False)
    absent = set(report["missing_keys"])
    if needed := sorted(key for key in absent if not any(part in key for part in _OPTIONAL)):
        kind = type(model).__name__
        raise ValueError(f"expected all weights of {kind}, found {len(needed)} missing such as {needed[0]}")
    return model.float(), absent


def _takes_audio(model: Any) -> bool:
    main_input = model.main_input_name
    decodes = getattr(model.config, "is_encoder_decoder", False)
    if main_input not in ("input_values", "input_features", "pixel_values") or decodes:
        raise ValueError(f"expected an encoder of audio or images, found {type(model).__name__} with {main_input}")
    return main_input != "pixel_values"


def _audio_network(encoder: _Encoder, extractor: Any) -> tuple[Network, AudioInput]:
    seconds = 2.0
    if encoder.model.config.model_type == "audio-spectrogram-transformer":
        seconds = extractor.max_length / 100  # in frames of 10 ms
    elif hasattr(extractor, "max_length_s"):
        seconds = float(extractor.max_length_s)
    return _Audio(encoder, extractor), AudioInput(seconds=seconds)


def _video_network(encoder: _Encoder, processor: Any) -> tuple[Network, VideoInput]:
    settings = processor.to_dict()
    size = settings["crop_size"] if settings.get("do_center_crop") else settings["size"]
    height, width = (int(size.get(side) or size["shortest_edge"]) for side in ("height", "width"))
    # The processor computes (value of 0..255 * factor - mean) / std; ours are of RGB in [0, 1].
    unit = 255 * settings["rescale_factor"] if settings.get("do_rescale") else 255.0
    normalizes = settings.get("do_normalize")
    mean = tuple(value / unit for value in (settings["image_mean"] if normalizes else (0.0,) * 3))
    std = tuple(value / unit for value in (settings["image_std"] if normalizes else (1.0,) * 3))
    frames = getattr(encoder.model.config, "num_frames", None)
    network = (EachFrame if frames is None else _Video)(encoder, encoder.embedding_dim, mean, std)
    return network, VideoInput(frames=IMAGE_FRAMES if frames is None else frames, size=(height, width))


def _check_forward(network: Network, view: View, processor: Any) -> None:
    """Run the network once: a model that refuses its inputs fails here, not in the middle of a dataset."""
    inputs = view.random_inputs(1, getattr(processor, "sampling_rate", 0), np.random.default_rng(0))
    with torch.inference_mode():
        network.eval()(view.network_input(inputs))


def _provenance(name: str, config: Any, architecture: str) -> Provenance:
    weights = Path(name) / "model.safetensors"
    if weights.is_file():
        return weights_provenance(f"{architecture} of {Path(name).name}", weights)
    commit = getattr(config, "_commit_hash", None)
    return {"name": f"{architecture} of {HUGGINGFACE}{name}"} | ({"commit": commit} if commit else {})


class TextEncoder:
    """The text tower of a joint encoder (CLIP, CLAP), whose texts lie in the space of its images or audio.

    Attributes:
        provenance: that of the teacher with the same weights.
    """

    def __init__(self, model: Any, tokenizer: Any, provenance: Provenance) -> None:
        self.model, self.tokenizer, self.provenance = model.eval(), tokenizer, provenance

    def embed(self, text: str) -> np.ndarray:
        """float32 (D,), before normalization; words beyond the model's length are cut off."""
        tokens = self.tokenizer([text], return_tensors="pt", truncation=True)
        with torch.inference_mode():
            pooled = self.model.text_model(**tokens).pooler_output
            embedding: np.ndarray = self.model.text_projection(pooled)[0].numpy()
        return embedding


def load_text_encoder(name: str) -> TextEncoder:
    """The text tower of `huggingface:<hub id or folder>`.

    Raises:
        TeacherError: transformers is not installed, the model is not found, or it has no text in its space.
    """
    if find_spec("transformers") is None:
        raise TeacherError(f"{name}: transformers is not installed: install the extra 'huggingface'")
    import transformers

    folder = name.removeprefix(HUGGINGFACE)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model, _ = _load_model(folder, config)
        if not hasattr(model, "text_projection"):
            raise ValueError(f"expected an encoder of texts too, found {type(model).__name__}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers, hub and safetensors raise many kinds
        raise TeacherError(f"{name}: its text encoder cannot be loaded: {error_message(error)[:300]}") from error
    return TextEncoder(model, tokenizer, _provenance(folder, config, type(model).__name__))
