"""What the tests of audits share: clips of the small store that can be scored, tiny runs, changed stores."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avdistill.data.store import CLIP_SCHEMA, Store
from avdistill.training import StudentConfig, TrainConfig, train
from avdistill.types import PictureView

VIEW = PictureView(frames=4, size=(24, 32), crop_area=(0.8, 1.0), crop_ratio=(1.2, 1.6), flip=False)
# Of the small store's training clips: train_0, _4, _8, _12, _16 have no sound, both silent_ ones are silent.
LABELLED = [f"train_{i}" for i in (1, 2, 3, 5, 6, 7)]
UNLABELLED = [f"train_{i}" for i in (9, 10, 11, 13, 14, 15, 17)]
WITHOUT_TEACHER = ["train_0", "train_4", "train_8", "train_12", "train_16", "silent_0", "silent_1"]


def trained(store, out, method, teacher="sound"):
    config = TrainConfig(
        store=store.folder,
        out=out,
        student=StudentConfig("shifted_frames", VIEW, {"width": 8, "embedding_dim": 16}),
        method=method,
        teacher=teacher,
        steps=3,
        batch_size=6,
        validation_fraction=0,
    )
    return train(config)


def changed(store, out, columns=None, **teacher):
    """A copy of the store with columns (name -> id -> value) and the teacher "sound" (fields of it) changed."""
    shutil.copytree(store.folder, out)
    table = pq.read_table(out / "clips.parquet")
    for name, values in (columns or {}).items():
        column = [values.get(i, old) for i, old in zip(table["id"].to_pylist(), table[name].to_pylist(), strict=True)]
        table = table.set_column(table.column_names.index(name), name, pa.array(column, CLIP_SCHEMA.field(name).type))
    pq.write_table(table, out / "clips.parquet")
    copy = Store(out)
    if teacher:
        embedding, logits, present = store.teacher_features("sound")
        embedding[~present] = np.nan
        fields = {"embedding": embedding, "logits": logits, "classes": store.classes, "modality": "sound"} | teacher
        copy.add_teacher("sound", source="test", **fields)
    return Store(out)


def by_id(result):
    return {row["id"]: row for row in result.rows}
