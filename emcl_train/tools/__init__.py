"""The commands beside training and evaluation."""
