"""Training on several devices: the averaged gradient is that of the whole batch on one device."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import groupby
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_impl.devices import find_device
from twinsep.errors import InputError
from twinsep.training import processes

AXIS = "batch"


class Workers:
    """The workers that share every batch: devices, of this process or of all processes of ``jax.distributed``.

    Several processes (see :mod:`twinsep.training.processes`) connect through ``JAX_COORDINATOR_ADDRESS``, and each
    contributes ``devices`` of its own. Raises :class:`InputError` for a device that cannot be used, for more devices
    than there are, and for processes without that address.
    """

    def __init__(self, device: str, devices: int = 1):
        self.process = processes.current()
        if self.process.size > 1 and not jax.distributed.is_initialized():
            if "JAX_COORDINATOR_ADDRESS" not in os.environ:
                raise InputError("several processes of JAX need JAX_COORDINATOR_ADDRESS: see jax_impl/README.md")
            jax.distributed.initialize()
        find_device(device)  # raises for one that cannot be used
        own = jax.local_devices(backend=device)
        self.device = own[0]
        if devices > len(own):
            raise InputError(
                f"--devices {devices} is not possible: JAX has {len(own)} of the kind {device} here (on a CPU, "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={devices} makes as many)"
            )
        ordered = sorted(jax.devices(device), key=lambda d: (d.process_index, d.id))
        by_process = [list(found) for _, found in groupby(ordered, key=lambda d: d.process_index)]
        self.mesh = Mesh(np.array([d for found in by_process for d in found[:devices]]), (AXIS,))

    @property
    def size(self) -> int:
        """Number of workers."""
        return self.mesh.size

    def parallel(self, function: Callable[..., Any], replicated: tuple[bool, ...]) -> Callable[..., Any]:
        """Compile ``function`` for all workers; its results are equal in all of them.

        ``replicated`` says for each argument whether every worker has it whole, or only its part of the first axis.
        """
        if self.size == 1:
            return jax.jit(function)
        specs = tuple(P() if whole else P(AXIS) for whole in replicated)
        return jax.jit(jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=P(), check_vma=False))

    def mean(self, x: Any) -> Any:
        """Mean over the workers of arrays in a compiled function; the arrays themselves for one worker.

        All arrays are exchanged as one: XLA on a CPU starts exchanges at once if none depends on another, and each
        blocks a thread of its pool, so those of one device could leave no thread to the others.
        """
        if self.size == 1:
            return x
        whole, restore = ravel_pytree(x)
        return restore(jax.lax.pmean(whole, AXIS))

    def place(self, tree: Any, *, split: bool = False) -> Any:
        """Put arrays on all workers: whole, or ``split`` along the first axis, of which this process has its part."""
        if self.size == 1:
            return jax.device_put(tree, self.device)
        sharding = NamedSharding(self.mesh, P(AXIS) if split else P())
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)

    def local(self, tree: Any) -> Any:
        """The arrays that every worker has whole, as arrays of this process's first device."""
        return tree if self.size == 1 else jax.tree.map(lambda x: x.addressable_data(0), tree)

    def close(self) -> None:
        """Wait for the others, and leave the group."""
        if self.process.size > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("end of the run")
            jax.distributed.shutdown()
