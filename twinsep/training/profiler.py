"""``twinsep train --profile N``: where the time of a training step goes, by the framework's own profiler.

The trace holds the training step with real batches and nothing else: no validation, no checkpoint. Times are of each
operation itself, without those it contains, and summed over threads, so that together they may exceed the step's.
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
from twinsep.utils.backend import twin
from twinsep.utils.files import atomic_path

#: Steps before those that count: they compile, and fill caches.
WARM_UP = 3
SHOWN = 10

#: (operation, total seconds, calls)
Cost = tuple[str, float, int]


def profile_steps(config: Config, folder: Path, *, framework: str, device: str, steps: int) -> list[Cost]:
    """The command: trace ``steps`` training steps into ``folder/profile`` and print the most expensive operations.

    Returns these, SHOWN or fewer. Of ``folder`` nothing else is touched, and an earlier profile stays until the new
    one is whole. Raises :class:`InputError` for fewer than one step, for bad data, for a framework or device that is
    missing and for a folder that cannot be.
    """
    if steps < 1:
        raise InputError(f"--profile {steps}: give the number of steps to trace, at least 1")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give --out the name of a folder")
    batches = TrainingBatches(config)
    trainer = twin(framework, "train").Trainer(config, device)
    t = config.training
    target, unfinished = folder / "profile", folder / ".profile"
    seconds: list[float] = []
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process
        unfinished.mkdir(parents=True)
        with progress.progress_bar("profile") as report, iter(batches) as stream:

            def step() -> None:
                drawn = [next(stream) for _ in range(t.accumulation)]
                started = time.perf_counter()
                trainer.step(drawn, t.learning_rate, t.ema_decay)
                seconds.append(time.perf_counter() - started)
                report(len(seconds), WARM_UP + steps)

            for _ in range(WARM_UP):
                step()
            costs = PROFILERS[framework](step, steps, unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # other files of the user's, or no folder at all
            folder.rmdir()
        raise
    per_step = 1000 * sum(seconds[WARM_UP:]) / steps
    _print(costs, steps, f"{framework} on {device}: {per_step:.4g} ms a step while traced, mean of {steps}")
    sentence = f"the trace is {next(target.rglob('*.json.gz'))}; open it in https://ui.perfetto.dev"
    Console(stderr=True).print(sentence, soft_wrap=True, markup=False, highlight=False)
    return costs[:SHOWN]


def _print(costs: list[Cost], steps: int, title: str) -> None:
    total = sum(seconds for _, seconds, _ in costs) or 1.0
    table = Table(title=title, title_justify="left")
    table.add_column("operation", overflow="fold")
    for heading in ("ms/step", "share", "calls/step"):
        table.add_column(heading, justify="right")
    for name, seconds, calls in costs[:SHOWN]:
        table.add_row(name, f"{1000 * seconds / steps:.3f}", f"{seconds / total:.1%}", f"{calls / steps:g}")
    Console().print(table, markup=False)


def _summed(costs: Iterable[Cost]) -> list[Cost]:
    """One for each operation, the most expensive first."""
    seconds: dict[str, float] = {}
    calls = Counter[str]()
    for name, spent, count in costs:
        seconds[name] = seconds.get(name, 0.0) + spent
        calls[name] += count
    return sorted(((name, spent, calls[name]) for name, spent in seconds.items()), key=lambda cost: -cost[1])


# ---------------------------------------------------------------------------- PyTorch


def torch_profile(step: Callable[[], None], steps: int, folder: Path) -> list[Cost]:
    """Trace ``steps`` calls into ``folder/torch.json.gz``; all operations, the most expensive first.

    Where there is a GPU and the step runs on it they are its kernels and copies, otherwise the CPU's operations.
    """
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library notes each start and stop on the standard error
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as trace:
        for _ in range(steps):
            step()
    with atomic_path(folder / "torch.json.gz") as temporary:
        trace.export_chrome_trace(str(temporary))
    averages = trace.key_averages()
    # The time of a kernel also counts towards the CPU's operation that launched it: one or the other.
    kernels = [a for a in averages if a.device_type == DeviceType.CUDA and not a.is_user_annotation]
    if kernels:
        return _summed((a.key, a.self_device_time_total / 1e6, a.count) for a in kernels)
    return _summed((a.key, a.self_cpu_time_total / 1e6, a.count) for a in averages)


# ---------------------------------------------------------------------------- JAX

#: What XLA appends to tell one instance of an operation from the next.
_INSTANCE = re.compile(r"(\.(\d+|clone|remat\d*))+$")


def jax_profile(step: Callable[[], None], steps: int, folder: Path) -> list[Cost]:
    """Trace ``steps`` calls into ``folder/jax``; all HLO operations by kind, the most expensive first.

    What the compiler has fused is one operation, named by what is in it.
    """
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a frame for each Python call would be most of the trace
    with jax.profiler.trace(folder / "jax", profiler_options=options):
        for _ in range(steps):
            step()
    costs: list[Cost] = []
    for path in (folder / "jax").rglob("*.xplane.pb"):
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        # Of an accelerator's operations the CPU's threads hold the launch alone.
        accelerators = [plane for plane in planes if plane.name.startswith("/device:")]
        for plane in accelerators or planes:
            for line in plane.lines:
                costs += _operations(line.events)
    return _summed(costs)


def _operations(events: Iterable[Any]) -> list[Cost]:
    """One thread's HLO operations; the time of an event within another, such as a loop's body, is taken off that."""
    found = []
    for event in events:
        operation = dict(event.stats).get("hlo_op")
        if operation:  # the others are Python's, the runtime's and the scheduler's
            found.append((event.start_ns, -event.duration_ns, _INSTANCE.sub("", str(operation))))
    found.sort()
    own = [-minus_duration for _, minus_duration, _ in found]
    around: list[int] = []
    for index, (start, minus_duration, _) in enumerate(found):
        while around and found[around[-1]][0] - found[around[-1]][1] <= start:
            around.pop()
        if around:
            own[around[-1]] += minus_duration
        around.append(index)
    return [(name, nanoseconds / 1e9, 1) for (_, _, name), nanoseconds in zip(found, own, strict=True)]


#: Framework → function (step, how often, folder of the trace) that gives all operations, the most expensive first.
PROFILERS = {"torch": torch_profile, "jax": jax_profile}
