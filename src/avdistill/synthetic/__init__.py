"""A synthetic dataset: media files of moving objects whose audio often belongs to another object."""
