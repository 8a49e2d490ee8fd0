"""What tests share: small real files, a small dataset, and where the development data lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, here and in every process that a test starts: threads of several processes on two cores wait
# for each other far longer than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nor does each of those processes compile the library anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import shutil
import subprocess
import tempfile
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import torch

from avdistill.annotations import Annotation
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.executors import process_pool
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.media_files import audible_videos, small_videos
from support.warm_python import WarmPython

# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

# These files take longest. They come first, so that processes which share the files end at about the same time.
LONGEST = (
    "test_distributed.py", "test_training.py", "test_export.py", "test_benchmark.py", "test_distill.py",
    "test_pages.py", "test_public_api.py", "test_site.py", "test_predictor.py", "test_cli.py", "test_many_sizes.py",
    "test_browser.py", "test_power_cut.py", "test_tasks.py", "test_crafted.py", "test_accelerator.py",
)  # fmt: skip

MEMORY = Path("/dev/shm")
DEVELOPMENT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Tests write 2 GB and wait again and again until it is on the disk: where there is room, they write to memory."""
    if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 8 << 30:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # asked for anew


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="session")
def development_data() -> Path:
    if not DEVELOPMENT_DATA.is_dir():
        pytest.skip("the development data (real videos and embeddings) is not on this machine")
    return DEVELOPMENT_DATA


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Headless Chromium, of this machine."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install avdistill[dev]")
    from support.chromium import NAMES, chromium, find_browser

    executable = find_browser()
    if executable is None:
        pytest.skip(f"no browser on PATH; looked for {', '.join(NAMES)}")
    with chromium(executable) as running:
        yield running


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """Starts `python -m avdistill ...` without the seconds that its imports take."""
    verbs = ("console", "compare", "dataset", "distill", "embed", "evaluate", "predict", "serve", "teachers", "train")
    with WarmPython(
        *(f"avdistill.commands.{each}" for each in verbs), "torch._dynamo", "torch.distributed.run"
    ) as python:
        yield python


@pytest.fixture(scope="session", autouse=True)
def warm_readers() -> Iterator[None]:
    """The processes in which a test's own process reads files are forked from one that has imported PyAV."""
    modules = ("avdistill.preparation.clip_reader", "avdistill.synthetic.generator")
    with WarmPython(*modules) as python, pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_pool, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": python.popen}))
        yield


@pytest.fixture
def fresh_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are fresh interpreters, as they are for users."""
    monkeypatch.setattr(process_pool, "subprocess", subprocess)


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Annotation]]:
    folder = tmp_path_factory.mktemp("videos")
    return folder, small_videos(folder)


@pytest.fixture(scope="session")
def prepared(small_set: tuple[Path, list[Annotation]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset without a teacher; tests must not write into it."""
    folder, annotations = small_set
    out = tmp_path_factory.mktemp("prepared") / "dataset"
    prepare(annotations, folder, out, PrepareConfig(fps=10, short_side=32), workers=1)
    return out


@pytest.fixture(scope="session")
def taught(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    """The same dataset with a teacher "audio" of 24 dimensions and logits, made of random numbers by rule."""
    import shutil

    out = tmp_path_factory.mktemp("taught") / "dataset"
    shutil.copytree(prepared, out)
    dataset = ClipDataset(out)
    rng = np.random.default_rng(1)
    embedding = np.abs(rng.standard_normal((len(dataset), 24))).astype(np.float32)
    logits = rng.standard_normal((len(dataset), 3)).astype(np.float32)
    absent = ~dataset.columns["has_audio"].astype(bool) | dataset.columns["silent"].astype(bool)
    embedding[absent] = np.nan
    logits[absent] = np.nan
    dataset.add_features(
        "audio",
        modality="audio",
        provenance={"name": "test"},
        embedding=embedding,
        logits=logits,
        classes=dataset.classes,
    )
    return ClipDataset(out)


@pytest.fixture(scope="session")
def _sounding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with_audio")
    dataset = prepare(
        audible_videos(folder), folder, folder / "dataset", PrepareConfig(fps=10, short_side=24), workers=1
    )
    rng = np.random.default_rng(1)
    true = np.array([dataset.classes.index(row[0]) for row in dataset.labels])
    logits = (rng.standard_normal((len(dataset), 3)) + 3 * np.eye(3)[true]).astype(np.float32)
    embedding = np.abs(logits @ rng.standard_normal((3, 24))).astype(np.float32)
    dataset.add_features(
        "audio",
        modality="audio",
        provenance={"name": "test"},
        embedding=embedding,
        logits=logits,
        classes=dataset.classes,
    )
    return folder / "dataset"


@pytest.fixture
def many_clips(_sounding: Path, tmp_path: Path) -> ClipDataset:
    """A copy, to write into, of a dataset of 40 clips that all audio, with a teacher "audio" that is mostly right."""
    import shutil

    return ClipDataset(shutil.copytree(_sounding, tmp_path / "many_clips"))


@pytest.fixture
def two(many_clips: ClipDataset) -> ClipDataset:
    """The same with a second teacher "other", of 7 dimensions, that lacks each third clip."""
    rng = np.random.default_rng(3)
    embedding = rng.standard_normal((len(many_clips), 7)).astype(np.float32)
    logits = (many_clips.features("audio").logits + rng.standard_normal((len(many_clips), 3))).astype(np.float32)
    embedding[::3], logits[::3] = np.nan, np.nan
    many_clips.add_features(
        "other",
        modality="audio",
        provenance={"name": "another"},
        embedding=embedding,
        logits=logits,
        classes=many_clips.classes,
    )
    return ClipDataset(many_clips.folder)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
