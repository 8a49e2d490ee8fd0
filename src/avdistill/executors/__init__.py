"""Work in other processes and threads, on this machine or others, with results in order or as they come."""
