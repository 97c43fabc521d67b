"""Input checks of the selective scan, shared by both twins."""

from __future__ import annotations

from typing import Any


def check_scan_inputs(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any | None) -> None:
    """Raise ValueError unless the inputs of a selective scan match.

    u, delta, z (b, l, e); A (e, n); B, C (b, l, n); D (e,); all floating point, and all or none float64.
    """
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(
            f"selective_scan: u must be (b, l, e) and A (e, n); they have shapes {tuple(u.shape)} and {tuple(A.shape)}."
        )
    (b, l, e), n = u.shape, A.shape[1]
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D} | ({} if z is None else {"z": z})
    expected = {
        "u": (b, l, e),
        "delta": (b, l, e),
        "A": (e, n),
        "B": (b, l, n),
        "C": (b, l, n),
        "D": (e,),
        "z": (b, l, e),
    }
    for name, x in named.items():
        if tuple(x.shape) != expected[name]:
            raise ValueError(
                f"selective_scan: {name} has shape {tuple(x.shape)}; with u {(b, l, e)} and A {tuple(A.shape)} it must "
                f"be {expected[name]}."
            )
        if "float" not in str(x.dtype):
            raise ValueError(f"selective_scan: {name} is {x.dtype}; all inputs must be floating point.")
        if _is_double(x) != _is_double(u):
            raise ValueError(
                f"selective_scan: {name} is {x.dtype} and u {u.dtype}; either all inputs are float64 or none is."
            )


def _is_double(x: Any) -> bool:
    return str(x.dtype).endswith("float64")
