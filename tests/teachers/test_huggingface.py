"""Encoders of transformers: tiny random ones of each family, against transformers itself on the same input."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import TeacherError
from avdistill.inputs import normalize_frames
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from support.features import feature_arrays

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install avdistill[huggingface]"
)
RATE = 16000
# Enough of a transformer: two layers of width 16.
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VIDEO = {**SMALL, "image_size": 32, "patch_size": 16}
CLIP_SIZES = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
CONVOLUTIONS = {
    "conv_dim": (8, 8),
    "conv_kernel": (10, 8),
    "conv_stride": (10, 8),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def clap() -> tuple:
    tower = {
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "num_mel_bins": 64,
        "spec_size": 128,
        "window_size": 4,
    }
    config = transformers.ClapConfig(audio_config=tower, text_config={**SMALL, "vocab_size": 20}, projection_dim=12)
    return transformers.ClapModel(config), transformers.ClapFeatureExtractor(
        sampling_rate=RATE, max_length_s=1, hop_length=320, truncation="rand_trunc", frequency_max=8000
    )


def clip() -> tuple:
    config = transformers.CLIPConfig(vision_config=VIDEO, text_config={**SMALL, "vocab_size": 20}, projection_dim=12)
    return transformers.CLIPModel(config), transformers.CLIPImageProcessor(**CLIP_SIZES)


MAKERS = {
    "ast": lambda: (
        transformers.ASTForAudioClassification(
            transformers.ASTConfig(**SMALL, max_length=48, num_mel_bins=32, num_labels=5)
        ),
        transformers.ASTFeatureExtractor(max_length=48, num_mel_bins=32),
    ),
    "clap": clap,
    "hubert": lambda: (
        transformers.HubertModel(transformers.HubertConfig(**SMALL, **CONVOLUTIONS)),
        transformers.Wav2Vec2FeatureExtractor(do_normalize=True),
    ),
    "clip": clip,
    "dinov2": lambda: (
        transformers.Dinov2Model(transformers.Dinov2Config(**VIDEO)),
        transformers.BitImageProcessor(**{**CLIP_SIZES, "size": {"shortest_edge": 36}}),
    ),
    "vit": lambda: (
        transformers.ViTForImageClassification(transformers.ViTConfig(**VIDEO, num_labels=3)),
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    ),
    "videomae": lambda: (
        transformers.VideoMAEModel(transformers.VideoMAEConfig(**VIDEO, num_frames=4, tubelet_size=2)),
        transformers.VideoMAEImageProcessor(**CLIP_SIZES),
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """By family: (folder, model, processor)."""
    found = {}
    torch.manual_seed(0)
    for family, make in MAKERS.items():
        model, processor = make()
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        found[family] = folder, model.eval(), processor
    return found


def frames_of(teacher) -> torch.Tensor:
    rng = np.random.default_rng(0)
    shape = (2, teacher.view.frames, *teacher.view.size, 3)
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert expected.std() > 1e-3
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
@pytest.mark.parametrize("family", ["clip", "vit"])
def test_a_copied_teacher_gives_the_same_outputs(saved, family, copied):
    teacher = load_teacher(f"huggingface:{saved[family][0]}")
    other = copied(teacher.network)
    inputs = normalize_frames(frames_of(teacher))
    with torch.no_grad():
        expected = teacher.network(inputs)
        for parameter in teacher.network.parameters():
            parameter.zero_()
        found = other(inputs)
    assert torch.equal(found.embedding, expected.embedding)
    assert (found.logits is None) == (expected.logits is None)


@pytest.mark.parametrize("family", ["clip", "dinov2", "vit"])
def test_images_are_seen_one_by_one(saved, family):
    folder, model, processor = saved[family]
    teacher = load_teacher(f"huggingface:{folder}")
    assert (teacher.view.frames, teacher.view.size) == (8, (32, 32))
    frames = frames_of(teacher)
    cut = {"do_resize": False}  # the frames are of the size the processor cuts
    pixels = processor(list(frames.flatten(0, 1).permute(0, 3, 1, 2)), return_tensors="pt", **cut)["pixel_values"]
    with torch.no_grad():
        features = teacher.network(normalize_frames(frames))
        if family == "clip":
            told = model.vision_model(pixels)
            expected = model.visual_projection(told.pooler_output)
        elif family == "vit":
            told = model.vit(pixels)
            expected = told.last_hidden_state[:, 0]
            close(features.logits, model(pixels).logits.unflatten(0, (2, 8)).mean(1))
            assert teacher.classes == ("LABEL_0", "LABEL_1", "LABEL_2")
        else:
            told = model(pixels)
            expected = told.pooler_output
    close(features.embedding, expected.unflatten(0, (2, 8)).mean(1))
    assert teacher.network.embedding_dim == features.embedding.shape[1]
    if family == "clip":
        assert features.tokens is None
        assert features.embedding.shape == (2, 12)
    else:
        close(features.tokens, told.last_hidden_state[:, 1:].reshape(2, 8 * 4, 16))


def test_a_video_is_seen_as_a_whole(saved):
    folder, model, processor = saved["videomae"]
    teacher = load_teacher(f"huggingface:{folder}")
    assert (teacher.view.frames, teacher.view.size) == (4, (32, 32))
    frames = frames_of(teacher)
    videos = [list(video.permute(0, 3, 1, 2)) for video in frames]
    with torch.no_grad():
        told = model(**processor(videos, return_tensors="pt")).last_hidden_state
        features = teacher.network(normalize_frames(frames))
    close(features.embedding, told.mean(1))
    close(features.tokens, told)
    assert features.logits is None


@pytest.mark.parametrize(("family", "seconds"), [("ast", 0.48), ("clap", 1.0), ("hubert", 2.0)])
def test_audio_goes_through_the_models_own_extractor(saved, family, seconds):
    folder, model, extractor = saved[family]
    teacher = load_teacher(f"huggingface:{folder}")
    assert teacher.view.seconds == seconds
    assert teacher.sample_rate_hz == RATE
    audio = 0.1 * torch.randn(3, round(seconds * RATE), generator=torch.Generator().manual_seed(1))
    made = [extractor(row.numpy(), sampling_rate=RATE, return_tensors="pt") for row in audio]  # one at a time
    with torch.no_grad():
        features = teacher.network(audio)
        if family == "ast":
            rows = [model.audio_spectrogram_transformer(row["input_values"]) for row in made]
            expected = [row.pooler_output for row in rows]
            close(features.logits, torch.cat([model(row["input_values"]).logits for row in made]))
            close(features.tokens, torch.cat([row.last_hidden_state[:, 2:] for row in rows]))
            assert len(teacher.classes) == 5
        elif family == "clap":
            expected = [model.audio_projection(model.audio_model(**row).pooler_output) for row in made]
        else:
            expected = [model(row["input_values"]).last_hidden_state.mean(1) for row in made]
    close(features.embedding, torch.cat(expected))
    assert (features.logits is None) == (family != "ast")


def test_a_clap_that_fuses_does_not_depend_on_chance_or_neighbors(saved, tmp_path):
    config = saved["clap"][1].config
    config.audio_config.enable_fusion = True
    model = transformers.ClapModel(config)
    model.save_pretrained(tmp_path)
    transformers.ClapFeatureExtractor(
        sampling_rate=RATE, max_length_s=1, hop_length=320, truncation="fusion", frequency_max=8000
    ).save_pretrained(tmp_path)
    network = load_teacher(f"huggingface:{tmp_path}").network
    audio = 0.1 * torch.randn(3, RATE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = network(audio).embedding
        alone = torch.cat([network(row[None]).embedding for row in audio])
    close(together, alone)


@pytest.mark.parametrize(("family", "name"), [("ast", "audio"), ("clip", "video")])
def test_embedding_a_dataset(saved, prepared, tmp_path, family, name):
    import shutil

    shutil.copytree(prepared, tmp_path / "dataset")
    dataset = ClipDataset(tmp_path / "dataset")
    teacher = load_teacher(f"huggingface:{saved[family][0]}")
    entry = embed(dataset, teacher, name, device="cpu")
    c = dataset.columns
    expected = c["has_video"] if name == "video" else c["has_audio"] & ~c["silent"]
    embedding, logits, present = feature_arrays(ClipDataset(dataset.folder), name)
    assert present.tolist() == expected.astype(bool).tolist()
    assert entry.modality == name
    assert embedding.shape == (len(dataset), 12 if family == "clip" else 16)
    assert logits.shape == (len(dataset), len(dataset.classes))  # neither has the dataset's classes: of a head
    assert len(entry.provenance["weights_sha256"]) == 64
    assert entry.head


def test_a_pooler_that_was_never_trained_is_not_used(saved, tmp_path):
    folder, model, processor = saved["vit"]
    model.vit.save_pretrained(tmp_path)  # the part without classifier and pooler, as many checkpoints are
    processor.save_pretrained(tmp_path)
    network = load_teacher(f"huggingface:{tmp_path}").network
    frames = normalize_frames(frames_of(load_teacher(f"huggingface:{folder}")))
    with torch.no_grad():
        close(network(frames).embedding, load_teacher(f"huggingface:{folder}").network(frames).embedding)


def test_what_cannot_be_used_is_one_line(saved, tmp_path, monkeypatch):
    import sys

    from safetensors.torch import load_file, save_file

    with pytest.raises(TeacherError, match=r"^huggingface:/nowhere: expected a folder or a hub id") as told:
        load_teacher("huggingface:/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TeacherError, match="cannot be loaded") as told:
        load_teacher(f"huggingface:{tmp_path / 'empty'}")
    assert "\n" not in str(told.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TeacherError, match=r"nobody/nothing: cannot be loaded.*name a folder") as told:
        load_teacher("huggingface:nobody/nothing")
    assert "\n" not in str(told.value)
    model = transformers.BertModel(transformers.BertConfig(**SMALL, vocab_size=20))
    model.save_pretrained(tmp_path / "text")
    with pytest.raises(TeacherError, match="expected an encoder of audio or images, found BertModel"):
        load_teacher(f"huggingface:{tmp_path / 'text'}")
    folder, model, processor = saved["dinov2"]
    model.save_pretrained(tmp_path / "part")
    processor.save_pretrained(tmp_path / "part")
    weights = load_file(tmp_path / "part" / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "layernorm" not in key}
    save_file(kept, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"expected all weights of Dinov2Model, found 2 missing such as layernorm"):
        load_teacher(f"huggingface:{tmp_path / 'part'}")
    transformers.BitImageProcessor(size={"shortest_edge": 8}, do_center_crop=False).save_pretrained(tmp_path / "part")
    model.save_pretrained(tmp_path / "part")
    with pytest.raises(TeacherError, match="part: cannot be loaded: ") as told:  # no patch of 16 pixels fits in 8
        load_teacher(f"huggingface:{tmp_path / 'part'}")
    assert "\n" not in str(told.value)
    with pytest.raises(TeacherError, match=r"--weights: expected with cnn10, .* only$"):
        load_teacher(f"huggingface:{folder}", weights=tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TeacherError, match=r"install the extra 'huggingface'"):
        load_teacher(f"huggingface:{folder}")
