"""Data sets in folders, training batches, checks of a data set, and generated songs."""
