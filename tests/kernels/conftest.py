"""What all tests of kernels need."""

import pytest

import torch_impl


@pytest.fixture(scope="session", autouse=True)
def registered():
    """Register the CPU operators, which are otherwise registered at their first use."""
    torch_impl.kernels.cpu_kernels()
