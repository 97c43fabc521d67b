"""The ablations: their rows, profiles and statistics, and the stages that run them."""
