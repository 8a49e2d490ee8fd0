"""From media files and annotations to a dataset."""
