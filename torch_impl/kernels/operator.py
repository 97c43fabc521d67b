"""Registration of Python functions as PyTorch operators."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register the decorated function, which takes CPU tensors, as the operator ``twinsep::name`` and return that.

    It gets ``register_fake`` and ``register_autograd``. Unlike ``torch.library.custom_op`` it checks nothing at a call:
    the checks would take longer than the arithmetic of a small model.
    """

    def register(function: Callable[..., Any]) -> Any:
        """Register ``function`` and return the operator."""
        qualified = f"twinsep::{name}"
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(qualified, "cpu", function)
        registered = getattr(torch.ops.twinsep, name).default
        registered.register_fake = partial(torch.library.register_fake, qualified)
        registered.register_autograd = partial(torch.library.register_autograd, qualified)
        return registered

    return register
