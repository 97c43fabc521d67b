"""Helpers without a subject of their own: files, progress bars, provenance, threads, the choice of a framework."""
