"""What is in a folder."""


def contents(folder):
    """The bytes of its files by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
