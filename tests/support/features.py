"""A dataset's stored features as bare arrays."""


def feature_arrays(dataset, name):
    """(embedding, logits or None, valid)."""
    stored = dataset.features(name)
    return stored.embedding, stored.logits, stored.valid
