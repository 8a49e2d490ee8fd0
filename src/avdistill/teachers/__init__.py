"""Frozen networks whose features go into a dataset: by name, from a run folder, from files."""
