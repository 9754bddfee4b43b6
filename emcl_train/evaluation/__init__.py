"""Evaluation: rankings, their figures and the lines of a results table."""
