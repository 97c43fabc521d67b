"""Parts of the network without parameters, shared by both twins: pooling, initial weights, groups of bands."""
