"""A dataset's stored features as bare arrays, and as files."""

import json


def feature_arrays(dataset, name):
    """(embedding, logits or None, valid)."""
    stored = dataset.features(name)
    return stored.embedding, stored.logits, stored.valid


def part_files(dataset, name, kind):
    """The files of a kind, such as "embedding", in the order of the clips."""
    folder = dataset.folder / "features" / name
    parts = json.loads((folder / "features.json").read_text())["parts"]
    return [folder / f"part-{p['first']:08d}-{p['files'][kind][:16]}.{kind}.npy" for p in parts if kind in p["files"]]
