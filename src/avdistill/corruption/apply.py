"""A dataset with a known corruption: some clips with mismatched, dropped, time-shifted or noisy audio, fewer labels.

The result is an ordinary dataset. Its frames and audio are links to the shards of the source dataset, which is not
changed; mismatched audio is a changed pointer in the clip table. The truth stands in the column `extra`, for scoring
only: `audio` (a name of `AUDIO_CHANGES`, or "kept" for clips without a change and without earlier truth),
`audio_source` (the clip it came from) and `true_label` (of a clip whose label was removed).
"""

import os
from contextlib import closing
from pathlib import Path

from avdistill.config_io import encode
from avdistill.corruption.audio import corrupt_audio
from avdistill.corruption.labels import remove_labels
from avdistill.corruption.spec import Corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.copies import Row, linked_copy, rows_of
from avdistill.dataset.shards import AudioShards
from avdistill.dataset.splits import clips_of_splits


def corrupt(dataset: ClipDataset, corruption: Corruption, out: str | os.PathLike[str]) -> ClipDataset:
    """Make a corrupted copy of a dataset, without its teacher features (see `teachers.transfer`).

    Args:
        dataset: the source. It is not changed; on another disk it must stay readable, for the copy links to it.
        out: the new dataset's folder; returned as it is if it already holds exactly this dataset.

    Raises:
        DatasetError: `out` holds something else, another process or an interrupted `prepare` uses it, a split or a
            different label is missing, there are fewer labeled videos than requested, or it cannot be written.
    """

    def rows(folder: Path) -> list[Row]:
        changed = rows_of(dataset)
        clips = clips_of_splits(dataset, corruption.split).tolist()
        with closing(AudioShards(folder, _free_shard_number(dataset))) as new:
            corrupt_audio(dataset, corruption, changed, clips, new)
        remove_labels(dataset, corruption, [changed[i] for i in clips])
        return changed

    what = f"this dataset under the corruption {corruption.name}"
    return linked_copy(dataset, out, encode(corruption), what, rows)


def _free_shard_number(dataset: ClipDataset) -> int:
    # By file, not by the table: a shard that no clip uses any more is a link too, and writing to it would change the
    # dataset it came from.
    return max((int(file.stem.removeprefix("audio-")) for file in dataset.folder.glob("audio-*.npy")), default=-1) + 1
