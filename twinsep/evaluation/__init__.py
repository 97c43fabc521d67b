"""Scores on whole songs: trained models, floors and ceilings, and museval's metrics."""
