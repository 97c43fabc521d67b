"""The released weights: the stages that make them from recordings in free packages, their proof and their model card."""
