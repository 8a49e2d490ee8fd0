"""From lists of clips, ours and published ones, to annotations."""
