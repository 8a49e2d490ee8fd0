"""From a file on disk to a `Batch`."""
