"""One function per verb: its arguments are the command line, read by tyro from names, types and docstrings."""
