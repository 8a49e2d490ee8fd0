"""The dataset on disk, and the splits, windows and batches that are drawn from it."""
