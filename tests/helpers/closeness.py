"""Comparison of the values and gradients of a kernel with those of its definition."""


def assert_agree(found, wanted, tolerance, floor=1e-3):
    """Assert that tensors agree with float64 tensors of the same names, relative to max(largest value, ``floor``)."""
    assert found.keys() == wanted.keys()
    for name, exact in wanted.items():
        assert found[name].shape == exact.shape
        if exact.numel():
            error = (found[name].double() - exact.double()).abs().max().item() / max(exact.abs().max().item(), floor)
            assert error <= tolerance, f"{name}: {error:.2e} of its largest value"
