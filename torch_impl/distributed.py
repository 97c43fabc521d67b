"""Training on several devices: the averaged gradient is that of the whole batch on one device."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from torch_impl.devices import find_device
from torch_impl.layers import Module
from twinsep.errors import InputError
from twinsep.training import processes

#: Longest wait for the others: a validation on all songs, by the main process alone.
_TIMEOUT = timedelta(hours=2)


class Workers:
    """The workers that share every batch: the processes that torchrun started, or this one alone.

    With "cuda" each process uses the GPU numbered ``LOCAL_RANK``, and NCCL connects them; Gloo connects CPUs. Raises
    :class:`InputError` for ``devices`` above 1 (JAX only), for several processes without ``MASTER_ADDR``, and for a
    device that cannot be used.
    """

    def __init__(self, device: str, devices: int = 1):
        if devices > 1:
            raise InputError(
                "--devices is for JAX: start PyTorch with torchrun --nproc-per-node "
                f"{devices} --no-python twinsep train …"
            )
        self.process = processes.current()
        if self.process.size > 1:
            if device == "cuda":
                device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
                torch.cuda.set_device(device)
            if "MASTER_ADDR" not in os.environ:
                raise InputError(
                    "several processes of PyTorch need MASTER_ADDR and MASTER_PORT: start them with torchrun"
                )
            if not distributed.is_initialized():
                backend = "nccl" if device.startswith("cuda") else "gloo"
                distributed.init_process_group(backend, timeout=_TIMEOUT)
        self.device = find_device(device)

    @property
    def size(self) -> int:
        """Number of workers."""
        return self.process.size

    def parallel(self, model: Module) -> Module:
        """Wrap ``model`` so that a backward pass averages the gradients over the workers."""
        if self.size == 1:
            return model
        # One bucket for all gradients of a small model: on a CPU an exchange beside the backward pass slows it.
        return DistributedDataParallel(model, bucket_cap_mb=25, gradient_as_bucket_view=True)

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the workers of a tensor, without gradient; the tensor itself for one worker."""
        if self.size == 1:
            return x
        total = x.detach().clone()
        distributed.all_reduce(total)
        return total / self.size

    def close(self) -> None:
        """Wait for the others, and leave the group."""
        if distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()
