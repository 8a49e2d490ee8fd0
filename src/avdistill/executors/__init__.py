"""Work in other processes and threads, with results in order."""
