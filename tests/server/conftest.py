"""A server of the small dataset, with an audit, and a run of a few steps."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from support.media_files import tone, write_video

pytest.importorskip("starlette", reason="starlette is not installed: pip install avdistill[serve]")


@pytest.fixture(scope="session")
def served(taught, tmp_path_factory):
    """(dataset, run, videos): copies that only servers read; the run has an audit of its training clips."""
    from avdistill.analysis.audit.audit import audit, write_audit
    from avdistill.dataset.clip_dataset import ClipDataset
    from avdistill.methods.mnf_csc import MNFCSCConfig
    from support.audit_cases import trained

    folder = tmp_path_factory.mktemp("served")
    dataset = ClipDataset(shutil.copytree(taught.folder, folder / "dataset"))
    run = trained(dataset, folder / "run", MNFCSCConfig())
    write_audit(run / "audit-train", audit(run, dataset))
    return dataset, run


@pytest.fixture(scope="session")
def indexed(served, tmp_path_factory):
    """An index of the dataset, by its teacher and by the run's student."""
    from avdistill.search.columns import student_column
    from avdistill.search.forms import build_index

    dataset, run = served
    out = tmp_path_factory.mktemp("indexed") / "index"
    build_index([dataset.folder], out, [student_column(run)])
    return out


@pytest.fixture(scope="session")
def server(served, indexed, tmp_path_factory):
    from avdistill.server.config import ServeConfig
    from support.live_server import live

    dataset, run = served
    decisions = tmp_path_factory.mktemp("reviewed") / "decisions.csv"
    with live(ServeConfig(dataset=dataset.folder, runs=(run,), index=str(indexed), decisions=decisions)) as running:
        yield running


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """Three seconds of changing colors with a tone."""
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 255, (6, 1, 1, 3)).repeat(5, 0).repeat(48, 1).repeat(64, 2).astype(np.uint8)
    return write_video(tmp_path_factory.mktemp("upload") / "video.mp4", frames=frames, waveform=tone(3.0, 440))
