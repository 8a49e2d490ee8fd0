"""Other projects: files of the paper's code, model cards for a hub, experiment trackers."""
