"""CPU kernels: loops compiled by Numba, on NumPy arrays, which both twins wrap as differentiable operators.

The twins import these modules on first use, as importing Numba takes a second.
"""
