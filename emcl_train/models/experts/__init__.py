"""Retrieval by experts: systems that compare precomputed features of several networks with a text, expert by expert."""
