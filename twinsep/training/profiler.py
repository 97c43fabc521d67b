"""``twinsep train --profile N``: time per operation of a training step, by the framework's own profiler.

The trace covers training steps with real batches, without validation or checkpoints. The time of an operation excludes
the operations within it and is summed over threads, so that all together may exceed the time of the step.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from twinsep.config import Config
from twinsep.data.loader import TrainingBatches
from twinsep.errors import InputError
from twinsep.utils import progress
from twinsep.utils.backend import choose_device, twin
from twinsep.utils.files import atomic_path

#: Steps before the traced ones, to compile and fill caches.
WARM_UP = 3
#: Operations in the printed table.
SHOWN = 10

#: (operation, total seconds, calls).
Cost = tuple[str, float, int]
#: Function (step, number of steps, folder for the trace) that returns all operations, the most expensive first.
Profiler = Callable[[Callable[[], None], int, Path], list[Cost]]


def profile_steps(config: Config, folder: Path, *, framework: str, device: str, steps: int) -> list[Cost]:
    """Run the command: trace ``steps`` steps into ``folder/profile``, print and return the most expensive operations.

    At most SHOWN operations are returned. Nothing else in ``folder`` changes, and an earlier profile stays until the
    new one is complete. Raises :class:`InputError` for fewer than one step, bad data, a missing framework or device,
    and a ``folder`` that is a file.
    """
    if steps < 1:
        raise InputError(f"--profile {steps} is too few: trace at least 1 step")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose a folder as --out")
    batches = TrainingBatches(config)
    device = choose_device(framework, device, Console(stderr=True).print)
    trainer = twin(framework, "train").Trainer(config, device)
    target, unfinished = folder / "profile", folder / ".profile"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
        unfinished.mkdir(parents=True)
        costs, seconds = _trace(config, batches, trainer, PROFILERS[framework], steps, unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # the folder holds other files, or does not exist
            folder.rmdir()
        raise
    per_step = 1000 * sum(seconds) / steps
    _print_table(costs, steps, f"{framework} on {device}: {per_step:.4g} ms per traced step, mean of {steps}")
    sentence = f"the trace is {next(target.rglob('*.json.gz'))}; open it in https://ui.perfetto.dev"
    Console(stderr=True).print(sentence, soft_wrap=True, markup=False, highlight=False)
    return costs[:SHOWN]


def _trace(
    config: Config, batches: TrainingBatches, trainer: Any, profiler: Profiler, steps: int, folder: Path
) -> tuple[list[Cost], list[float]]:
    """Trace ``steps`` steps into ``folder`` after WARM_UP others; return all costs and the seconds of each step."""
    t = config.training
    seconds: list[float] = []
    with progress.progress_bar("profile") as report, iter(batches) as stream:

        def step() -> None:
            drawn = [next(stream) for _ in range(t.accumulation)]
            started = time.perf_counter()
            trainer.step(drawn, t.learning_rate, t.ema_decay)
            seconds.append(time.perf_counter() - started)
            report(len(seconds), WARM_UP + steps)

        for _ in range(WARM_UP):
            step()
        return profiler(step, steps, folder), seconds[WARM_UP:]


def _print_table(costs: list[Cost], steps: int, title: str) -> None:
    total = sum(seconds for _, seconds, _ in costs) or 1.0
    table = Table(title=title, title_justify="left")
    table.add_column("operation", overflow="fold")
    for heading in ("ms/step", "share", "calls/step"):
        table.add_column(heading, justify="right")
    for name, seconds, calls in costs[:SHOWN]:
        table.add_row(name, f"{1000 * seconds / steps:.3f}", f"{seconds / total:.1%}", f"{calls / steps:g}")
    Console().print(table, markup=False)


def _summed(costs: Iterable[Cost]) -> list[Cost]:
    """Sum the costs of each operation; the most expensive comes first."""
    seconds: dict[str, float] = {}
    calls = Counter[str]()
    for name, spent, count in costs:
        seconds[name] = seconds.get(name, 0.0) + spent
        calls[name] += count
    return sorted(((name, spent, calls[name]) for name, spent in seconds.items()), key=lambda cost: -cost[1])


# ---------------------------------------------------------------------------- PyTorch


def torch_profile(step: Callable[[], None], steps: int, folder: Path) -> list[Cost]:
    """Trace ``steps`` calls of ``step`` into ``folder/torch.json.gz``; return all operations, the most expensive first.

    They are the kernels and copies of a GPU if the step runs on one, otherwise the CPU's operations.
    """
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences a line on the standard error per start and stop
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as trace:
        for _ in range(steps):
            step()
    with atomic_path(folder / "torch.json.gz") as temporary:
        trace.export_chrome_trace(str(temporary))
    averages = trace.key_averages()
    # Not both: the time of a kernel also counts towards the CPU operation that launched it.
    kernels = [a for a in averages if a.device_type == DeviceType.CUDA and not a.is_user_annotation]
    if kernels:
        return _summed((a.key, a.self_device_time_total / 1e6, a.count) for a in kernels)
    return _summed((a.key, a.self_cpu_time_total / 1e6, a.count) for a in averages)


# ---------------------------------------------------------------------------- JAX

#: Suffixes by which XLA distinguishes the instances of an operation.
_INSTANCE = re.compile(r"(\.(\d+|clone|remat\d*))+$")


def jax_profile(step: Callable[[], None], steps: int, folder: Path) -> list[Cost]:
    """Trace ``steps`` calls of ``step`` into ``folder/jax``; return all HLO operations, the most expensive first.

    The instances of an operation are summed. A fusion counts as one operation, named by its parts.
    """
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # events of Python calls would fill most of the trace
    with jax.profiler.trace(folder / "jax", profiler_options=options):
        for _ in range(steps):
            step()
    costs: list[Cost] = []
    for path in (folder / "jax").rglob("*.xplane.pb"):
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        # The CPU's threads hold only the launches of an accelerator's operations.
        accelerators = [plane for plane in planes if plane.name.startswith("/device:")]
        for plane in accelerators or planes:
            for line in plane.lines:
                costs += _operations(line.events)
    return _summed(costs)


def _operations(events: Iterable[Any]) -> list[Cost]:
    """HLO operations of one thread; the time of an event within another, such as a loop's body, counts only once."""
    found = []
    for event in events:
        operation = dict(event.stats).get("hlo_op")
        if operation:  # other events are Python's, the runtime's and the scheduler's
            found.append((event.start_ns, -event.duration_ns, _INSTANCE.sub("", str(operation))))
    found.sort()
    own = [-minus_duration for _, minus_duration, _ in found]
    enclosing: list[int] = []
    for index, (start, minus_duration, _) in enumerate(found):
        while enclosing and found[enclosing[-1]][0] - found[enclosing[-1]][1] <= start:
            enclosing.pop()
        if enclosing:
            own[enclosing[-1]] += minus_duration
        enclosing.append(index)
    return [(name, nanoseconds / 1e9, 1) for (_, _, name), nanoseconds in zip(found, own, strict=True)]


#: Framework → its profiler.
PROFILERS: dict[str, Profiler] = {"torch": torch_profile, "jax": jax_profile}
