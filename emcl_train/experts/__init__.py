"""Sizes of the systems that compare features of several networks, by data set. Nothing here needs torch."""
