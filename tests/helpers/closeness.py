"""How near values and gradients of a kernel must come to those of its definition."""


def assert_agree(found, wanted, tolerance, floor=1e-3):
    """{name: tensor} against the same in float64, each within ``tolerance`` of its largest value, or of ``floor``."""
    assert found.keys() == wanted.keys()
    for name, exact in wanted.items():
        assert found[name].shape == exact.shape
        if exact.numel():
            error = (found[name].double() - exact.double()).abs().max().item() / max(exact.abs().max().item(), floor)
            assert error <= tolerance, f"{name}: {error:.2e} of its largest value"
