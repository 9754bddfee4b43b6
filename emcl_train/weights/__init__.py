"""Checkpoints of others: reading them without running what is in them, and their names beside ours."""
