"""Many methods, seeds and corruptions on one dataset, trained and compared alike."""
