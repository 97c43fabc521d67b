"""Registration of Python functions as PyTorch operators."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor


class Operator:
    """The operator ``twinsep::<name>`` of a function that takes CPU tensors and has no defaults.

    It has ``register_fake`` and ``register_autograd``, used as those of ``torch.library.custom_op``. Unlike that it
    checks nothing at a call, and calls the function past PyTorch's dispatcher where nothing else sees the operator:
    checks and dispatcher would take longer than the arithmetic of a small model.
    """

    def __init__(self, name: str, function: Callable[..., Any]):
        self.function, self.name = function, f"twinsep::{name}"
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(self.name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(self.name, "cpu", function)
        self.registered = getattr(torch.ops.twinsep, name).default
        self.register_fake = partial(torch.library.register_fake, self.name)

    def __call__(self, *inputs: Any) -> Any:
        """Compute; by PyTorch's dispatcher where inputs need gradients, or something else sees the operator."""
        plain = _plain(inputs) and not _differentiated(inputs)
        return self.function(*inputs) if plain else self.registered(*inputs)

    def register_autograd(self, gradients: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Differentiate the operator by ``gradients(ctx, *grads)``, given what ``setup_context`` saved in ctx."""

        def compute(*inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return self.function(*inputs) if _plain(inputs) else self.registered(*inputs)

        class Node(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = compute(*inputs)
                setup_context(ctx, inputs, output)
                return output

            backward = staticmethod(gradients)

        Node.__name__ = self.name.replace("::", "_")  # the profiler shows it

        def differentiable(*inputs: Any) -> Any:
            return Node.apply(*inputs) if _differentiated(inputs) else compute(*inputs)

        torch.library.impl(self.name, "Autograd", differentiable)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Make the decorated function the operator ``twinsep::name``."""
    return partial(Operator, name)


def _plain(inputs: Iterable[Any]) -> bool:
    """Return False while a program is traced, counted or profiled: tensors may have no memory, or calls are watched."""
    if torch._C._len_torch_dispatch_stack() or torch.autograd._profiler_enabled():
        return False
    return all(type(x).__torch_dispatch__ is Tensor.__torch_dispatch__ for x in _tensors(inputs))


def _differentiated(inputs: Iterable[Any]) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in _tensors(inputs))


def _tensors(inputs: Iterable[Any]) -> Iterable[Tensor]:
    for x in inputs:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list):
            yield from x
