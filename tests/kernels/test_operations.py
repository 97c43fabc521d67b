"""Counted operations against counts by hand: matrix products, and operators without a formula in PyTorch."""

import torch

from torch_impl import ops
from torch_impl.kernels import operations
from torch_impl.scan import selective_scan

B, L, D, N = 3, 8, 16, 4


def test_count_of_a_matrix_product():
    x, weight = torch.zeros(B * L, D), torch.zeros(D, 2 * D)
    assert operations.count(lambda: x @ weight) == 2 * (B * L) * D * (2 * D)


def test_count_of_an_lstm():
    x, w, bias = torch.zeros(B, L, D), torch.zeros(4 * D, D), torch.zeros(4 * D)
    assert operations.count(lambda: ops.lstm(x, w, w, bias, bias)) == 2 * (B * L) * (4 * D) * (D + D)


def test_count_of_a_scan():
    u, states = torch.zeros(B, L, D), torch.zeros(B, L, N)
    arguments = (u, u + 1, -torch.ones(D, N), states, states, torch.ones(D))
    assert operations.count(lambda: selective_scan(*arguments)) == 7 * B * L * D * N


def test_count_of_attention():
    q, k = torch.zeros(B, 2, L, D), torch.zeros(B, 2, 2 * L, D)
    assert operations.count(lambda: ops.attention(q, k, k)) == 4 * B * L * (2 * L) * 2 * D


def test_count_of_a_depthwise_convolution():
    x, weight, bias = torch.zeros(B, L, D), torch.zeros(D, 1, N), torch.zeros(D)
    assert operations.count(lambda: ops.depthwise_silu(x, weight, bias, N - 1)) == 2 * B * L * D * N


def test_count_of_exponentials():
    u, states, D_ = torch.zeros(B, L, D), torch.zeros(B, L, N), torch.ones(D)
    assert (
        operations.exponentials(lambda: selective_scan(u, u + 1, -torch.ones(D, N), states, states, D_))
        == u.numel() * N
    )
    for width in (D, 64):  # heads for our attention kernel and for PyTorch's
        q, k = torch.zeros(B, 2, L, width), torch.zeros(B, 2, 2 * L, width)
        assert operations.exponentials(lambda q=q, k=k: ops.attention(q, k, k) @ k.mT) == B * 2 * L * 2 * L
