"""Datasets with known noisy correspondence and fewer labels, for controlled experiments."""

from avdistill.corruption.apply import corrupt
from avdistill.corruption.spec import Corruption, parse_corruption

__all__ = ["Corruption", "corrupt", "parse_corruption"]
