"""Training: the loop around a twin's optimiser step, its schedule, its run folder and its logs."""
