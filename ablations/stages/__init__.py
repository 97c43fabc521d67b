"""Stages of the pipeline: thin code between ``dvc.yaml`` and the functions of ``twinsep``."""
