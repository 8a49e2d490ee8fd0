"""Nearest neighbors of embeddings, and indexes of clips that are searched by them."""
