"""Separation of whole songs: chunks around a model, songs in memory, one file, many files."""
