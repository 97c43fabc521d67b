"""Small songs, and training processes to kill: shared by the stages ``faults`` and ``kills`` and by the tests."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage

from twinsep import audio
from twinsep.checkpoints import Checkpoint, read
from twinsep.config import Config
from twinsep.training import run_dir

#: The command line, which also prints TRAINING when the first step begins.
PROGRAM = """
from twinsep import cli
from twinsep.training import loop
run_steps = loop._TrainingLoop.run_steps
loop._TrainingLoop.run_steps = lambda *a: (print("TRAINING", flush=True), run_steps(*a))[1]
if __name__ == "__main__":
    cli.main()
"""


RATE = 44_100  # Hz


def music(channels: int = 2, samples: int = 9_000, rate: int = RATE) -> np.ndarray:
    """A chord that differs between channels, with a little noise: (c, s) in float64."""
    t = np.arange(samples) / rate
    rng = np.random.default_rng(samples)
    tones = [sum(0.1 * np.sin(2 * np.pi * f * (c + 1) * t + f) for f in (220, 277, 330)) for c in range(channels)]
    return np.stack(tones) + 0.01 * rng.standard_normal((channels, samples))


def write_song(folder: Path, seconds: float = 2.0, seed: int = 0, silent: Sequence[str] = ()) -> None:
    """Write the stems and the mixture of a song whose voice is a gliding tone; stems in ``silent`` are zero."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    pitch = np.cumsum(500 + 80 * np.sin(2 * np.pi * 3 * t)) / RATE
    voice: Any = sum(0.1 / k * np.sin(2 * np.pi * k * pitch) for k in range(1, 6)) * (np.sin(2 * np.pi * t) > -0.5)
    low = np.cumsum(rng.standard_normal((2, len(t))), 1)
    low -= scipy.ndimage.uniform_filter1d(low, 4000, axis=1)
    stems = {
        "vocals": np.stack([voice, voice]),
        "drums": 0.1 * rng.standard_normal((2, len(t))) * np.exp(-10 * (t % 0.5)),
        "bass": 0.1 * np.sin(2 * np.pi * 70 * t) * np.ones((2, 1)),
        "other": 0.05 * low / np.abs(low).max(),
    }
    stems = {k: np.round((0 if k in silent else 1) * v * 2**15) / 2**15 for k, v in stems.items()}
    for name, stem in {**stems, "mixture": sum(stems.values())}.items():
        audio.write(folder / f"{name}.wav", stem.astype(np.float32), RATE, subtype="PCM_16")


class Process:
    """A process that runs ``twinsep train --config … --out <out>``; as a context manager it is killed at the end.

    ``prelude`` is Python source that it runs first, ``environment`` holds further environment variables.
    """

    def __init__(
        self,
        config: Config,
        out: Path,
        *options: str,
        framework: str = "torch",
        prelude: str = "",
        environment: dict[str, str] | None = None,
    ):
        self.out = out
        file = out.parent / f"{out.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(config.to_dict()))
        script = out.parent / f"{out.name}-program.py"
        script.write_text(prelude + PROGRAM)
        arguments = ["train", "--config", str(file), "--out", str(out), "--framework", framework, *options]
        self.said = out.parent / f"{out.name}.said"
        with self.said.open("w") as said:
            # In its own session, so that its child processes are killed with it.
            self.process = subprocess.Popen(
                [sys.executable, str(script), *arguments],
                stderr=said,
                stdout=said,
                start_new_session=True,
                env=os.environ | (environment or {}),
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, seconds: float = 300) -> int:
        """Wait for the end and return the exit status. Raises subprocess.TimeoutExpired after ``seconds``."""
        return self.process.wait(seconds)

    def wait_for(self, condition, seconds: float = 300) -> bool:
        """Wait until ``condition()`` holds; return False if the process ends before that. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return condition()
            if time.monotonic() > end:
                raise TimeoutError(f"{self.out}: waited {seconds} s; output: {self.message()}")
            time.sleep(0.005)
        return True

    def training(self) -> bool:
        """True if the first step has begun."""
        return "TRAINING" in self.said.read_text(errors="replace")

    def message(self) -> str:
        """Output so far, without progress lines and Python's remarks about the shared memory of killed processes."""
        lines = self.said.read_text(errors="replace").splitlines()
        kept = [line for line in lines if line.strip() and not line.startswith(("train ", "TRAINING"))]
        return "\n".join(x for x in kept if "resource_tracker" not in x)


def step_of(folder: Path) -> int:
    """The step of a run's last checkpoint, 0 if there is none; the run may be writing one."""
    for name in (run_dir.LAST, run_dir.PREVIOUS):
        try:
            return read(folder / name, prefixes=("none",)).step
        except (ValueError, OSError):
            continue
    return 0


def killed(config: Config, out: Path, kills: int, seed: int, *, longest: float, **options) -> list[dict]:
    """Start a run and kill it ``kills`` times, each after a random time of at most ``longest`` seconds.

    The time counts in turn from a new checkpoint, so that the run makes progress, and from the first step. Returns for
    each kill the step of the last checkpoint before and after it and the files in the folder.
    """
    rng, ends = random.Random(seed), []
    for number in range(kills):
        before = step_of(out)
        with Process(config, out, **options) as run:
            # Importing takes most of the time, and a kill during it would test nothing.
            run.wait_for(run.training)
            if number % 2 == 0:
                run.wait_for(lambda before=before: step_of(out) > before)
            time.sleep(rng.uniform(0, longest))
        held = sorted(path.name for path in out.iterdir()) if out.exists() else []
        ends.append({"step before": before, "step after": step_of(out), "held": held})
    return ends


def difference(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Names of the parts in which two checkpoints differ by at least one bit, except times."""
    names = [n for n in a.tensors.keys() | b.tensors.keys() if not _equal(a.tensors.get(n), b.tensors.get(n))]
    kept = [{k: v for k, v in x.provenance.get("progression", {}).items() if k != "seconds"} for x in (a, b)]
    if kept[0] != kept[1]:
        names.append("progression")
    return names + [n for n in ("config", "step", "data") if getattr(a, n) != getattr(b, n)]


def _equal(a, b) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes()
