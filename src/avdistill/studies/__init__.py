"""What is learned by looking at several runs: tables, plots, HTML."""
