"""What knows the files of a run folder."""
