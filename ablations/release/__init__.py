"""The released weights: the stages that make them from recordings, prove them and write their model card."""
