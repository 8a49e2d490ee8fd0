"""Nearest neighbors of embeddings."""
