"""The systems this one is measured against."""
