"""Files from anybody: what is taken from them, how much of it, and that nothing in them is run (docs/security.md)."""
