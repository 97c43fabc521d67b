"""A run in a process of its own, and what its end leaves: for the tests and for :mod:`faults`."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from twinsep import runs
from twinsep.checkpoint import Checkpoint, read
from twinsep.config import Config

#: Says when the first step begins; then the command as a person types it.
PROGRAM = """
from twinsep import cli, training
run_steps = training._Loop.run_steps
training._Loop.run_steps = lambda *a: (print("TRAINING", flush=True), run_steps(*a))[1]
if __name__ == "__main__":
    cli.main()
"""


class Process:
    """``twinsep train --config … --out`` ``out`` in a process; a context, which kills it if it still runs at the end.

    ``prelude`` is code that it runs first, ``environment`` what it finds set beside what is set here.
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
            # A session of its own, so that the processes that feed it can be ended with it.
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
        """SIGKILL to the process and those it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, seconds: float = 300) -> int:
        """Its exit status, at the end."""
        return self.process.wait(seconds)

    def wait_for(self, condition, seconds: float = 300) -> bool:
        """Wait until ``condition()`` holds; False where the process has ended before."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return condition()
            if time.monotonic() > end:
                raise TimeoutError(f"{self.out}: waited {seconds} s; it said: {self.message()}")
            time.sleep(0.005)
        return True

    def training(self) -> bool:
        """Whether its steps have begun."""
        return "TRAINING" in self.said.read_text(errors="replace")

    def message(self) -> str:
        """What it said so far, without the progress line and Python's own remark on the memory of killed processes."""
        lines = self.said.read_text(errors="replace").splitlines()
        kept = [line for line in lines if line.strip() and not line.startswith(("train ", "TRAINING"))]
        return "\n".join(x for x in kept if "resource_tracker" not in x)


def step_of(folder: Path) -> int:
    """The step of the last checkpoint of a run that may be writing one, 0 where there is none."""
    for name in (runs.LAST, runs.PREVIOUS):
        try:
            return read(folder / name, prefixes=("none",)).step
        except (ValueError, OSError):
            continue
    return 0


def killed(config: Config, out: Path, kills: int, seed: int, *, longest: float, **options) -> list[dict]:
    """A run killed so many times, each after a random time up to ``longest`` seconds, every other one counted from the
    first step and the others from a new checkpoint, so that there is something to go on from.

    Gives for each kill the step that the last checkpoint had and what the folder held.
    """
    rng, ends = random.Random(seed), []
    for number in range(kills):
        before = step_of(out)
        with Process(config, out, **options) as run:
            # Once it trains: until then there is nothing to lose, and importing takes most of the time.
            run.wait_for(run.training)
            if number % 2 == 0:
                run.wait_for(lambda before=before: step_of(out) > before)
            time.sleep(rng.uniform(0, longest))
        held = sorted(path.name for path in out.iterdir()) if out.exists() else []
        ends.append({"step before": before, "step after": step_of(out), "held": held})
    return ends


def difference(a: Checkpoint, b: Checkpoint) -> list[str]:
    """The names of what two checkpoints do not share to the bit, times aside."""
    names = [n for n in a.tensors.keys() | b.tensors.keys() if not _equal(a.tensors.get(n), b.tensors.get(n))]
    kept = [{k: v for k, v in x.provenance.get("progression", {}).items() if k != "seconds"} for x in (a, b)]
    if kept[0] != kept[1]:
        names.append("progression")
    return names + [n for n in ("config", "step", "data") if getattr(a, n) != getattr(b, n)]


def _equal(a, b) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes()
