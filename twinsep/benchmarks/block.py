"""``twinsep bench block``: time of a dual-path block with each mixer, forward and with gradients."""

from __future__ import annotations

import contextlib
import statistics

from twinsep.benchmarks.process import WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row
from twinsep.config import preset
from twinsep.config.mixers import MIXERS
from twinsep.utils.backend import TWINS
from twinsep.utils.progress import ProgressCallback

#: Preset that sets the width and the bands of the block, and its number of frames (three seconds).
PRESET, FRAMES = "small", 259
#: Name of the PyTorch variant in which the scan's definition, a loop over frames, replaces its kernel.
LOOP = "mamba, frame after frame"
#: Counted calls of each variant.
REPETITIONS = 5


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure the median time in seconds of interleaved calls, after a first call that compiles."""
    keys = [(framework, kind) for kind in MIXERS for framework in TWINS] + [("torch", LOOP)]
    found: dict[tuple[str, str, bool], list[float]] = {}
    first: dict[tuple[str, str, bool], float] = {}
    with contextlib.ExitStack() as stack:
        workers = {key: stack.enter_context(WorkerProcess(key[0])) for key in keys}
        for done, (key, worker) in enumerate(workers.items(), 1):
            looped = key[1] == LOOP
            kind = "mamba" if looped else key[1]
            config = preset(PRESET).override({"model": {"mixer": {"kind": kind}}}).to_dict()
            for backward in (False, True):
                arguments = {"config": config, "frames": FRAMES, "backward": backward, "looped": looped}
                first[*key, backward] = worker.ask("prepare", name=str(backward), kind="block", **arguments)
                found[*key, backward] = []
            report(done, len(keys) + REPETITIONS)
        for turn in range(REPETITIONS):
            for framework, kind, backward in found:
                seconds = workers[framework, kind].ask("call", name=str(backward))
                found[framework, kind, backward].append(seconds)
            report(len(keys) + turn + 1, len(keys) + REPETITIONS)
    times = [
        {
            "framework": framework,
            "mixer": kind,
            "backward": backward,
            "first_call_s": first[framework, kind, backward],
            "median_s": round(statistics.median(seconds), 6),
            "times_s": seconds,
        }
        for (framework, kind, backward), seconds in found.items()
    ]
    return {"preset": PRESET, "frames": FRAMES, "repetitions": REPETITIONS, "times": times}


def rows(record: Record) -> list[Row]:
    """Format the record as table rows."""
    table: dict[str, dict[str, float]] = {}
    for t in record["times"]:
        name = f"{t['mixer']}, forward{' and backward' * t['backward']} (s)"
        table.setdefault(name, {})[t["framework"]] = t["median_s"]
    return list(table.items())
