"""Metrics from predictions, embeddings and labels. Knows nothing of training."""
