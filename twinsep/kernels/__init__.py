"""Loops for a CPU, compiled by Numba, on NumPy arrays: what the twins' own kernels for it share.

Each twin makes them operators of its framework, with gradients. Nothing here is imported before it is needed, as Numba
takes a second.
"""
