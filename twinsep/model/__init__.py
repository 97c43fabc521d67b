"""The parts of the network without parameters, shared by both twins: linear maps, initial weights, band runs."""
