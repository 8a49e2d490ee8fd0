"""Noisy correspondence and fewer labels, made on purpose and with known truth."""
