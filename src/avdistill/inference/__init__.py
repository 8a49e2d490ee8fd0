"""A trained network on datasets and on files, and its export."""
