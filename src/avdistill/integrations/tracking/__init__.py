"""Runs and studies in experiment trackers: a follower that reads their files and cannot disturb a training."""
