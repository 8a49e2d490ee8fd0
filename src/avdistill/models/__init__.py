"""Networks. Each may serve as student or as teacher; each returns `StudentFeatures` with tokens."""
