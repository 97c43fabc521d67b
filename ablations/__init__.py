"""The ablations: rows, profiles, statistics, and the stages of the pipeline."""
