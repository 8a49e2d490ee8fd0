"""Object storage: paths that are URLs, and the local copies of folders there."""
