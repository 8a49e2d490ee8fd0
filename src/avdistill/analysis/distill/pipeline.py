"""The whole of `distill` in one call; what an earlier call finished is kept."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.analysis.audit.audit import Audit, decide, write_audit
from avdistill.analysis.audit.dataset_audit import audit_dataset
from avdistill.analysis.audit.dataset_page import write_dataset_audit_page
from avdistill.analysis.benchmark.study import Study, run_study
from avdistill.analysis.distill.config import Bar, DistillConfig
from avdistill.analysis.distill.encoders import check_teacher, embed_all, installed_teacher
from avdistill.analysis.distill.plan import base_config, make_plan
from avdistill.analysis.distill.report import Findings, write_results
from avdistill.analysis.distill.videos import Videos, arrange, label_by_clusters, list_videos
from avdistill.config_io import encode, read_json
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import write_decisions
from avdistill.errors import ConfigError, DatasetError
from avdistill.executors.executor import Executor
from avdistill.fsio import result_folder, write_json
from avdistill.preparation.duplicates import Duplicate, find_duplicates
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.preparation.records import read_skipped
from avdistill.teachers.launch import prepare_in_parts
from avdistill.teachers.transfer import transfer_teachers

# Clips whose score of the audit is at least this are listed. Two of three unrelated pairs are, if their two ranks are
# independent: the mean of two uniform numbers exceeds t <= 1/2 with probability 1 - 2 t^2.
THRESHOLD = 0.4
_log = logging.getLogger(__name__)


def distill(config: DistillConfig, *, bar: Bar, executor: Executor | None = None, parts: int = 16) -> dict[str, Any]:
    """Prepare, find copies, embed, audit, plan, train, test and report.

    Args:
        config: what to do. In a folder that an earlier call began, the same call goes on.
        bar: makes a progress bar of a title.
        executor: prepares and embeds in parts and trains, on machines that share all folders; the caller stops it.
            None: processes of this machine.
        parts: of the work, with an executor.

    Returns:
        JSON-ready, as `results.json` holds it. `out` itself is a model that `predict`, `export` and `evaluate` take.

    Raises:
        AnnotationError, DatasetError: no videos, or too few labels to train and test with.
        TeacherError: no teacher of the modality at hand.
        ConfigError: the folder holds another call, or other files.
    """
    began = time.monotonic()
    videos = list_videos(config.videos, config.labels)
    teacher = check_teacher(config, bool(videos.labeled))
    _log.info("%s", _beginning(config, videos, teacher))
    _open_folder(config)
    raw = _prepare(config, videos, bar, executor, parts)
    copies = _duplicates(raw, config.out, bar)
    dataset = arrange(raw, copies, config.out / "dataset", test_fraction=config.test_fraction, seed=config.seed)
    dataset = embed_all(config, dataset, teacher, bar, executor, parts)
    audit = _audit(dataset, copies, config.out / "audit")
    if not videos.labeled:
        dataset = _with_clusters(config, dataset)
    base = base_config(config, dataset)
    plan = make_plan(config, base, time.monotonic() - began)
    _log.info("%s", plan.text)
    study = Study(
        dataset=dataset.folder,
        out=config.out / "study",
        base=replace(base, steps=plan.steps),
        methods=plan.methods,
        seeds=plan.seeds,
        teacher=config.features,
    )
    with bar("train students") as update:
        rows = run_study(study, workers=config.workers, threads=1, executor=executor, on_progress=update)
    skipped = read_skipped(config.out / "prepared")
    found = Findings(bool(videos.labeled), videos.left_out, skipped, copies, audit, THRESHOLD, plan.text)
    return write_results(config.out, study, rows, dataset, found)


def _open_folder(config: DistillConfig) -> None:
    """Write what is asked for, or compare with what an earlier call wrote. Raises ConfigError where they differ."""
    file = config.out / "distill.json"
    asked = {
        key: value for key, value in encode(config).items() if key not in ("out", "workers", "time_budget_seconds")
    }
    asked |= {"videos": str(config.videos.resolve())}
    if file.is_file():
        recorded = read_json(file)
        if differing := [key for key in asked if recorded.get(key) != asked[key]]:
            raise ConfigError(f"{config.out}: holds another call: {', '.join(differing)} differ; name another folder")
        return
    if config.out.exists() and any(config.out.iterdir()):
        raise ConfigError(f"{config.out}: expected an empty folder or one of an earlier call, found other files")
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(file, asked)


def _beginning(config: DistillConfig, videos: Videos, teacher: str | None) -> str:
    labels = f"{videos.labeled} labeled with {len(videos.classes)} classes" if videos.labeled else "none labeled"
    encoder = installed_teacher(config.student_modality)
    return (
        f"{len(videos.annotations)} clips, {labels}; {config.student_modality} student, {config.teacher_modality} "
        f"teacher {teacher or 'trained on the labeled clips'}; "
        + (f"audit with {encoder}" if encoder else f"no audit: no pretrained {config.student_modality} network is here")
    )


def _prepare(config: DistillConfig, videos: Videos, bar: Bar, executor: Executor | None, parts: int) -> ClipDataset:
    preparation = PrepareConfig(fps=config.fps, short_side=config.short_side)
    what = (videos.annotations, config.videos, config.out / "prepared", preparation)
    with bar("prepare dataset") as update:
        if executor is not None:
            return prepare_in_parts(*what, executor=executor, parts=parts, on_progress=update)
        return prepare(*what, workers=config.workers, on_progress=update)


def _duplicates(dataset: ClipDataset, out: Path, bar: Bar) -> list[Duplicate]:
    file = out / "duplicates.json"
    if not file.is_file():
        with bar("find copies") as update:
            write_json(file, [vars(each) for each in find_duplicates(dataset, on_progress=update)])
    return [Duplicate(**{**each, "clips": tuple(each["clips"])}) for each in read_json(file)]


def _audit(dataset: ClipDataset, copies: list[Duplicate], out: Path) -> Audit | None:
    """The audit without a run and its page, where both modalities have features and clips are enough; else None."""
    if not {"audio", "video"} <= dataset.teachers.keys():
        return None
    try:
        result = audit_dataset(dataset, audio_features="audio", video_features="video", duplicates=copies)
    except DatasetError as error:
        _log.info("no audit: %s", error)
        return None
    with result_folder(out) as fresh:
        write_audit(fresh, result)
        write_dataset_audit_page(fresh / "audit.html", result, dataset)
        write_decisions(fresh / "decisions.csv", decide(result, THRESHOLD))
    return result


def _with_clusters(config: DistillConfig, dataset: ClipDataset) -> ClipDataset:
    """Without labels: clusters of the teacher's embeddings stand for classes."""
    stored = dataset.features(config.features, tokens=False)
    embedding = np.where(stored.valid[:, None], stored.embedding, np.float32(np.nan))
    clustered = label_by_clusters(dataset, embedding, config.out / "clustered")
    transfer_teachers(dataset, clustered)
    return ClipDataset(clustered.folder)
