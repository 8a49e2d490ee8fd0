"""A text finds clips in the space of a CLIP, as transformers' own text features rank them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import SearchError, TeacherError
from avdistill.search.forms import build_index
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher

transformers = pytest.importorskip("transformers", reason="transformers is not installed: avdistill[huggingface]")
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP of random weights with a tokenizer of ten words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        vision_config={**TOWER, "image_size": 32, "patch_size": 16},
        text_config={**TOWER, "vocab_size": 12, "max_position_embeddings": 8, "eos_token_id": 11, "bos_token_id": 10},
        projection_dim=12,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**sizes).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(10)} | {"<s>": 10, "</s>": 11}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 10), ("</s>", 11)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", model_max_length=8)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_text_finds_the_clips_nearest_to_it(clip_folder: Path, taught: ClipDataset, tmp_path: Path, capsys) -> None:
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    encoder = f"huggingface:{clip_folder}"
    embed(dataset, load_teacher(encoder), "clip", windows=1)
    index = build_index([dataset.folder], tmp_path / "index")
    ids = torch.tensor([[10, 3, 5, 11]])
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    with torch.inference_mode():
        found = model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))
    text = torch.as_tensor(getattr(found, "pooler_output", found))[0].double().numpy()
    features = ClipDataset(dataset.folder).features("clip")
    rows = features.embedding[features.valid].astype(np.float64)
    cosines = rows @ text / np.linalg.norm(rows, axis=1) / np.linalg.norm(text)
    hits = index.search_text("w3 w5", encoder=encoder, space="clip", k=100)
    assert [hit.score for hit in hits] == pytest.approx(np.sort(cosines)[::-1], abs=1e-5)
    assert hits[0].clip == dataset.columns["id"][features.valid][cosines.argmax()]
    words = ["search", str(tmp_path / "index"), "--text", "w3 w5 w1 w1 w1 w1 w1 w1", "--encoder", encoder]
    assert main([*words, "--space", "clip"]) == 0
    assert main([*words, "--space", "audio"]) == 2
    assert "space 'audio': " in capsys.readouterr().err
    file = tmp_path / "clip.mp4"
    assert (
        main(["search", str(tmp_path / "index"), "--video", str(file), "--space", "clip", "--encoder", "yamnet"]) != 0
    )


def test_an_encoder_without_texts_or_of_other_weights_is_one_line(
    clip_folder: Path, taught: ClipDataset, tmp_path: Path
) -> None:
    config = transformers.ViTConfig(**TOWER, image_size=32, patch_size=16)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    index = build_index([taught.folder], tmp_path / "index")
    with pytest.raises(TeacherError, match="its text encoder cannot be loaded: expected an encoder of texts too"):
        index.search_text("w1", encoder=f"huggingface:{tmp_path / 'vit'}")
    with pytest.raises(SearchError, match=r"space 'audio': .*: expected name test, found CLIPModel of"):
        index.search_text("w1", encoder=f"huggingface:{clip_folder}")
