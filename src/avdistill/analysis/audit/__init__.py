"""Which clips have audio that does not belong to their video."""
