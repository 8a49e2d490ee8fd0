"""Running work in other processes and threads, in order."""
