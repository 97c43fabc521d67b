"""Other systems, to compare this one with."""
