"""Independent items on a Ray cluster (Moritz et al. 2018, arXiv 1712.05889): its placement, retries and scheduling.

Ray starts a worker process for each item that runs, restarts one that died, and gives the item to another machine if
one is lost. All machines need this package, and the files under the same paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from twinsep.errors import InputError, TwinsepError

Item = TypeVar("Item")
#: How often an item is tried again after its worker died.
RETRIES = 3
#: Threads of a worker: items run side by side, one core each.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


class Outcome(NamedTuple):
    """Result of the function for an item, or its error."""

    item: Any
    result: Any = None
    error: TwinsepError | None = None


def run(
    function: Callable[[Item], Any], items: Sequence[Item], *, gpus: int = 0, fresh: bool = False
) -> Iterator[Outcome]:
    """Call ``function`` with every item on the cluster and yield the outcomes as they come.

    The cluster is the one at ``RAY_ADDRESS``, or else a local one of all cores of this machine, started for the call.
    An item takes one core and ``gpus`` GPUs; with ``fresh`` each has a process of its own, otherwise processes are used
    again. Raises :class:`InputError` if Ray is missing or the cluster cannot be reached; an item whose function raises
    :class:`TwinsepError`, or whose worker died RETRIES + 1 times, has an error as its outcome.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(
            f"--executor ray needs the package {error.name}; install it with: pip install 'twinsep[cluster]'"
        ) from error
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
        except ConnectionError as error:
            where = os.environ.get("RAY_ADDRESS", "the address of ray.init")
            raise InputError(f"no Ray cluster answers at {where}: start it with `ray start --head`") from error
    try:
        remote = ray.remote(
            num_cpus=1,
            num_gpus=gpus,
            max_retries=RETRIES,
            max_calls=1 if fresh else 0,
            runtime_env={"env_vars": _ONE_THREAD},
        )(_call)
        function_on_cluster = ray.put(function)
        running = {remote.remote(function_on_cluster, item): item for item in items}
        while running:
            (done, *_), _rest = ray.wait(list(running))
            item = running.pop(done)
            try:
                yield Outcome(item, *ray.get(done))
            except ray.exceptions.RayError as error:
                yield Outcome(item, None, TwinsepError(_describe(error)))
    finally:
        if own:
            ray.shutdown()


def _call(function: Callable[[Any], Any], item: Any) -> tuple[Any, TwinsepError | None]:
    """The result of a function, or the sentence of its error: Ray would retry or wrap an exception."""
    try:
        return function(item), None
    except TwinsepError as error:
        return None, error


def _describe(error: Exception) -> str:
    kind = type(error).__name__
    if kind in ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "LocalRayletDiedError"):
        return f"its worker died {RETRIES + 1} times, perhaps because memory ran out"
    return f"its worker failed: {str(error).strip().splitlines()[-1]}"
