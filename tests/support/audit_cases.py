"""What the tests of audits share: clips of the small dataset that can be scored, tiny runs, changed datasets."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import CLIP_SCHEMA
from avdistill.inputs import VideoInput
from avdistill.training import ModelConfig, TrainConfig, train
from support.features import feature_arrays

VIEW = VideoInput(frames=4, size=(24, 32), scale=(0.8, 1.0), ratio=(1.2, 1.6), hflip=False)
# Of the small dataset's training clips: train_0, _4, _8, _12, _16 have no audio, both silent_ ones are silent.
LABELED = [f"train_{i}" for i in (1, 2, 3, 5, 6, 7)]
UNLABELED = [f"train_{i}" for i in (9, 10, 11, 13, 14, 15, 17)]
WITHOUT_TEACHER = ["train_0", "train_4", "train_8", "train_12", "train_16", "silent_0", "silent_1"]


def trained(dataset, out, method, teacher="audio"):
    config = TrainConfig(
        dataset=dataset.folder,
        out=out,
        student=ModelConfig("shifted_frames", VIEW, {"width": 8, "embedding_dim": 16}),
        method=method,
        teacher=teacher,
        steps=3,
        batch_size=6,
        val_fraction=0,
    )
    return train(config)


def changed(dataset, out, columns=None, **teacher):
    """A copy of the dataset with columns (name -> id -> value) and the teacher "audio" (fields of it) changed."""
    shutil.copytree(dataset.folder, out)
    table = pq.read_table(out / "clips.parquet")
    for name, values in (columns or {}).items():
        column = [values.get(i, old) for i, old in zip(table["id"].to_pylist(), table[name].to_pylist(), strict=True)]
        table = table.set_column(table.column_names.index(name), name, pa.array(column, CLIP_SCHEMA.field(name).type))
    pq.write_table(table, out / "clips.parquet")
    copy = ClipDataset(out)
    if teacher:
        embedding, logits, present = feature_arrays(dataset, "audio")
        embedding[~present] = np.nan
        fields = {"embedding": embedding, "logits": logits, "classes": dataset.classes, "modality": "audio"} | teacher
        copy.add_features("audio", provenance={"name": "test"}, **fields)
    return ClipDataset(out)


def by_id(result):
    return {row["id"]: row for row in result.rows}
