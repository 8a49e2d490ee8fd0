"""`avdistill distill`: a folder of videos and a few labels in, a small student and a report out."""
