"""Frozen teachers, pretrained or from a run folder, and the extraction of their features into a dataset."""
