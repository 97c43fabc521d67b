"""Training: the loop around a twin's optimiser step, its schedule, its folder and its logs."""
