"""A trained student in use."""
