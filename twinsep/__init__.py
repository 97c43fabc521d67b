"""twinsep: a band-split Mamba U-Net that removes vocals from music, twice (PyTorch and JAX)."""
