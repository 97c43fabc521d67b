"""Stage ``faults``: kill training runs, starve them and feed them damaged files.

Small runs of both frameworks train in their own processes. For each fault the record holds the exit status, the
message, the last checkpoint, and whether the run, resumed without the fault, ended with the bits of an undisturbed run.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ablations.fault_injection import Process, difference, killed, step_of, write_song
from ablations.stages import run_stage
from twinsep import checkpoints
from twinsep.config import Config, preset
from twinsep.training.loop import READER_DIED
from twinsep.training.run_dir import LAST
from twinsep.utils import progress, provenance
from twinsep.utils.files import write_json

OUT = Path("results/faults.json")
KILLS, RUNS = 15, 3  # per framework; the kills are spread over the runs
SECONDS = 120  # within which a run must notice that it cannot continue
FRAMEWORKS = ("torch", "jax")
#: Methods of :class:`Faults`.
FAULTS = ("kills", "disk_full", "checkpoint_cut", "file_vanishes", "nan_batch", "worker_killed", "no_memory")
#: First step that fails; the last checkpoint is at step 8.
FAILING = 11


def configuration(songs: Path) -> Config:
    """A model of some thousand weights, thirty steps, a checkpoint every fourth step."""
    model = {"d_model": 8, "n_heads": 2, "bands": "vocal18", "mixer": {"kind": "mamba", "d_state": 4}}
    training = {
        "steps": 30,
        "segment_seconds": 0.5,
        "validate_every": 4,
        "validation_tracks": 1,
        "validation_seconds": 1,
        "warmup_steps": 4,
    }
    return preset("tiny").override({"model": model, "training": training, "data": {"root": str(songs)}})


class Faults:
    """A folder with songs, an undisturbed run of one framework, and the faults that other runs suffer."""

    def __init__(self, framework: str, folder: Path):
        self.framework, self.folder = framework, folder
        self.songs = make_songs(folder / "songs")
        self.config = configuration(self.songs)
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.options: dict[str, Any] = {"framework": framework, "environment": cache}

    def whole(self) -> None:
        """Train the undisturbed run."""
        with self.process("whole") as run:
            status = run.wait(600)
            if status:
                raise RuntimeError(f"the undisturbed {self.framework} run exited with status {status}: {run.message()}")

    def process(self, name: str, *, prelude: str = "", config: Config | None = None) -> Process:
        """Start a run in the folder of that name."""
        return Process(config or self.config, self.folder / name, prelude=prelude, **self.options)

    def identical(self, name: str) -> bool:
        """True if that run's last checkpoint equals the undisturbed run's to the bit."""
        whole, found = (checkpoints.read(self.folder / run / LAST) for run in ("whole", name))
        return difference(whole, found) == []

    # ------------------------------------------------------------------------ faults

    def kills(self) -> dict[str, Any]:
        """SIGKILL at random times while the run trains, validates and writes."""
        ends, same = [], []
        for number in range(RUNS):
            name = f"killed-{number}"
            ends += killed(self.config, self.folder / name, KILLS // RUNS, seed=number, longest=1.5, **self.options)
            with self.process(name) as run:
                run.wait(600)
            same.append(self.identical(name))
        return {
            "kills": len(ends),
            "step of the last checkpoint before and after each kill": [
                [e["step before"], e["step after"]] for e in ends
            ],
            "runs that ended identical to the bit": f"{sum(same)} of {len(same)}",
            "held": all(same) and all(e["step after"] >= e["step before"] for e in ends),
        }

    def ended(self, name: str, during: Callable[[Process], None] | None = None, **options: Any) -> dict[str, Any]:
        """Record a fault that ends the run, then resume the run without it."""
        with self.process(name, **options) as run:
            if during:
                run.wait_for(run.training)
                during(run)
            try:
                status: int | None = run.wait(SECONDS)
            except subprocess.TimeoutExpired:
                status = None
            message = run.message()
        left = step_of(self.folder / name)
        self.restore_songs()
        with self.process(name) as run:
            run.wait(600)
        same = self.identical(name)
        return {
            "status": status,
            "message": message.replace(str(self.folder), "…"),
            "last checkpoint left": left,
            "resumed, ended identical to the bit": same,
            "held": bool(status) and same and "Traceback" not in message,
        }

    def disk_full(self) -> dict[str, Any]:
        """No file may exceed 100 kB from step 10 on, so that the next checkpoint cannot be written."""
        limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"
        return self.ended("disk-full", prelude=at_step(FAILING - 1, limit))

    def nan_batch(self) -> dict[str, Any]:
        """One batch of NaN."""
        poison = "stream = iter([dict(next(stream), mixture=np.full((1, 2, 22050), np.nan, np.float32))])"
        return self.ended("nan-batch", prelude=at_step(FAILING, poison))

    def no_memory(self) -> dict[str, Any]:
        """From step 11 on the process gets no further address space, and the batch is a hundred times as long."""
        starve = (
            "import resource\n"
            "pages = int(open('/proc/self/statm').read().split()[0])\n"
            "limit = pages * resource.getpagesize() + (64 << 20)\n"
            "resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))\n"
            "batch = next(stream)\n"
            "stream = iter([dict(batch, mixture=np.tile(batch['mixture'], 100), target=np.tile(batch['target'], 100))])"
        )
        return self.ended("no-memory", prelude=at_step(FAILING, starve))

    def file_vanishes(self) -> dict[str, Any]:
        """A stem is deleted while the run trains."""

        def vanish(run: Process) -> None:
            run.wait_for(lambda: step_of(run.out) >= 4)
            (self.songs / "train/a/drums.wav").unlink()

        return self.ended("file-vanishes", during=vanish)

    def worker_killed(self) -> dict[str, Any]:
        """The process that reads the songs is killed."""
        config = self.config.override({"data": {"workers": 1}})
        with self.process("worker-killed", config=config) as run:
            run.wait_for(lambda: step_of(run.out) >= 4)
            found = children(run.process.pid)
            for child in found:
                child.kill()
            status, message = run.wait(600), run.message()
        whole, last = (checkpoints.read(self.folder / name / LAST) for name in ("whole", "worker-killed"))
        same = difference(whole, last) == ["config"]  # the number of workers
        return {
            "killed": len(found),
            "status": status,
            "message": message.replace(str(self.folder), "…"),
            "ended identical to the bit": same,
            "held": bool(found) and status == 0 and same and READER_DIED in message,
        }

    def checkpoint_cut(self) -> dict[str, Any]:
        """The last checkpoint of a killed run loses its second half."""
        out = self.folder / "checkpoint-cut"
        with self.process("checkpoint-cut") as run:
            run.wait_for(lambda: step_of(out) >= 12)
        last, before = out / LAST, step_of(out)
        last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
        with self.process("checkpoint-cut") as run:
            status, message = run.wait(600), run.message()
        same = self.identical("checkpoint-cut")
        return {
            "status": status,
            "message": message.replace(str(self.folder), "…"),
            "checkpoint cut": before,
            "ended identical to the bit": same,
            "held": status == 0 and same and "resuming from previous.safetensors" in message,
        }

    def restore_songs(self) -> None:
        """Write the songs again as they were."""
        make_songs(self.songs)


def at_step(step: int, code: str) -> str:
    """Python source that runs ``code`` before that step; ``code`` may replace ``stream``, the iterator of batches."""
    indented = "\n".join(f"        {line}" for line in code.splitlines())
    return (
        "import numpy as np\nfrom twinsep.training.loop import _TrainingLoop\nbefore = _TrainingLoop.step\n"
        f"def step(self, stream):\n    if self.run.step + 1 == {step}:\n{indented}\n    return before(self, stream)\n"
        "_TrainingLoop.step = step\n"
    )


def make_songs(root: Path) -> Path:
    """Write two training songs and one validation song."""
    shutil.rmtree(root, ignore_errors=True)
    for seed, name in enumerate("abv"):
        write_song(root / "train" / name, seed=seed)
    (root / "splits.csv").write_text("track,split\na,train\nb,train\nv,valid\n")
    return root


def children(pid: int) -> list[Any]:
    """The processes that Grain started to read songs for a run."""
    import psutil

    found = psutil.Process(pid).children(recursive=True)
    return [child for child in found if "spawn_main" in " ".join(child.cmdline())]


def faults_of(framework: str, folder: Path, report: Callable[[], None]) -> dict[str, dict[str, Any]]:
    """Try every fault on one framework: name → what the fault is, and the outcome."""
    faults = Faults(framework, folder)
    faults.whole()
    found = {}
    for name in FAULTS:
        fault = getattr(faults, name)
        found[name.replace("_", " ")] = {"what": " ".join((fault.__doc__ or "").split()), framework: fault()}
        report()
    return found


def main() -> None:
    """Write ``results/faults.json``, or the file that the first argument names. The frameworks run side by side."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    with (
        tempfile.TemporaryDirectory() as folder,
        progress.progress_bar("faults") as show,
        ThreadPoolExecutor(len(FRAMEWORKS)) as pool,
    ):
        done = itertools.count(1)
        lock = threading.Lock()

        def report() -> None:
            with lock:
                show(next(done), len(FRAMEWORKS) * len(FAULTS))

        tried = [pool.submit(faults_of, framework, Path(folder) / framework, report) for framework in FRAMEWORKS]
        found, *others = (each.result() for each in tried)
    for other in others:
        for name, entry in found.items():
            entry |= other[name]
    write_json(
        out, {"faults": found, "configuration": configuration(Path("songs")).to_dict(), **provenance.describe("cpu")}
    )


if __name__ == "__main__":
    run_stage(main)
