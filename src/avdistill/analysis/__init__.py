"""Studies built on whole runs: comparisons, audits, probes, the demo."""
