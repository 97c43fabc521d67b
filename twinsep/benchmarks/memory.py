"""``twinsep bench memory``: peak memory of one mixer layer."""

from __future__ import annotations

import math

from twinsep.benchmarks.process import MIB, WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row
from twinsep.utils.backend import TWINS
from twinsep.utils.progress import ProgressCallback

#: Input and output have the shape (sequences, length, d_model); E = expand · d_model channels, N = d_state.
LAYER = {"sequences": 68, "length": 690, "d_model": 256, "d_state": 32, "expand": 2}
#: Largest peak memory of forward and backward of that layer, in MB of 10⁶ bytes.
BAR_MB = 1500


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure the peak memory in MiB of forward and backward (all gradients) of one ``mamba`` mixer layer."""
    found = {}
    for done, framework in enumerate(TWINS, 1):
        with WorkerProcess(framework) as worker:
            found[framework] = worker.ask("layer", sizes=LAYER)
        report(done, len(TWINS))
    state = 4 * math.prod(LAYER.values())  # bytes of float32 (b, l, e, n)
    return {
        "layer": {"mixer": "mamba", **LAYER},
        **{key: {framework: found[framework][key] for framework in TWINS} for key in found["torch"]},
        "subtracted": "memory resident before the run: the process with its imports, the weights, the input, the "
        "gradient at the output and the compiled program; for the compiler the same without the program",
        "bar_mb": BAR_MB,
        "bar_mib": round(BAR_MB * 1e6 / MIB, 1),
        "below_bar": {framework: x["peak_mib"] * MIB < BAR_MB * 1e6 for framework, x in found.items()},
        "materialised_state_mib": round(state / MIB, 1),
    }


def rows(record: Record) -> list[Row]:
    """Format the record as table rows."""
    peaks, bar, state = (record[key] for key in ("peak_mib", "bar_mib", "materialised_state_mib"))
    return [
        ("forward and backward (MiB)", peaks),
        (f"forward and backward ÷ bar of {bar:.0f} MiB", {framework: x / bar for framework, x in peaks.items()}),
        (f"forward and backward ÷ state of {state:.0f} MiB", {framework: x / state for framework, x in peaks.items()}),
        ("compiler (MiB)", record["compiler_peak_mib"]),
    ]
