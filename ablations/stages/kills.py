"""Stage ``kills``: ``twinsep separate`` gets SIGKILL while it works; what its folder then holds. Tests use it too."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import twinsep
from ablations.fault_injection import music
from twinsep import audio
from twinsep.errors import guarded
from twinsep.utils import progress, provenance
from twinsep.utils.files import write_json

OUT = Path("results/separation_kills.json")
SONGS = 12
KILLS = 30


class Separation:
    """The command on so many short songs, of several formats, and the files of one run that nothing happened to."""

    def __init__(self, folder: Path, weights: Path, framework: str):
        self.weights, self.framework, self.out = weights, framework, folder / "out"
        self.songs = []
        for number in range(SONGS):
            song = folder / "songs" / f"{number:02}{('.wav', '.flac', '.mp3')[number % 3]}"
            audio.write(song, music(samples=20_000 + 3000 * number).astype("float32"), 44_100)
            self.songs.append(song)
        with self.started() as whole:
            if whole.wait(300):
                raise RuntimeError("the separation that nothing happened to failed")
        self.whole = self.found()

    def started(self) -> subprocess.Popen:
        """The command, in a process."""
        names = [str(song) for song in self.songs]
        options = ["--checkpoint", str(self.weights), "--out", str(self.out), "--two-stems", "vocals"]
        options += ["--framework", self.framework, "--overwrite"]
        code = "from twinsep.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, "separate", *names, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def found(self) -> dict[str, bytes]:
        """Every file there is in the folder of the stems, hidden ones too."""
        paths = (path for path in self.out.rglob("*") if path.is_file())
        return {path.relative_to(self.out).as_posix(): path.read_bytes() for path in paths}

    def killed(self, kills: int, seed: int, report: progress.ProgressCallback | None = None) -> list[dict[str, Any]]:
        """SIGKILL at random times after the first stem is there; every other time into the folder of the time before.

        Gives for each how many stems the folder held, and how many files in it were not the stem of their name, whole.
        """
        rng, ends = random.Random(seed), []
        for number in range(kills):
            if number % 2 == 0:
                for name in self.found():
                    (self.out / name).unlink()
            before = {name: (self.out / name).stat().st_ino for name in self.found()}
            with self.started() as process:
                while not self.begun(before):
                    if process.poll() is not None:
                        raise RuntimeError(f"the separation ended with {process.returncode} before it was killed")
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 1.0))
                process.send_signal(signal.SIGKILL)
                process.wait()
            held = self.found()
            broken = sum(data != self.whole.get(name) for name, data in held.items())
            if report:
                report(number + 1, kills)
            ends.append({"stems": len(held) - broken, "other files": broken})
        return ends

    def begun(self, before: dict[str, int]) -> bool:
        """Whether there is a stem that was not there before."""
        if not self.out.exists():
            return False
        return any(
            path.is_file() and before.get(path.relative_to(self.out).as_posix()) != path.stat().st_ino
            for path in self.out.rglob("*.*")
        )


def main() -> None:
    """With the preset tiny, weights as drawn."""
    with tempfile.TemporaryDirectory() as folder, progress.progress_bar("kills") as report:
        twinsep.load("tiny").save_pretrained(Path(folder) / "tiny")
        separation = Separation(Path(folder), Path(folder) / "tiny", "torch")
        ends = separation.killed(KILLS, 0, report)
    record = {
        "what": "twinsep separate, of twelve short songs in WAV, FLAC and MP3, both stems, killed at random times; "
        "every other time it writes over the stems of the time before",
        "kills": len(ends),
        "whole stems of 24 left after each": [end["stems"] for end in ends],
        "other files left": sum(end["other files"] for end in ends),
    }
    write_json(OUT, {**record, **provenance.describe("cpu")})


if __name__ == "__main__":
    guarded(main)
