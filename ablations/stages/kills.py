"""Stage ``kills``: ``twinsep separate`` is killed (SIGKILL) while it works; counts the files that it leaves.

A killed separation may leave hidden temporary files, which the next run that is not killed removes. Tests use it too.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import twinsep
from ablations.fault_injection import music
from ablations.stages import run_stage
from twinsep import audio
from twinsep.utils import progress, provenance
from twinsep.utils.files import write_json

OUT = Path("results/separation_kills.json")
SONGS = 12
KILLS = 30


class Separation:
    """The command on twelve short songs of several formats, and the files of one run that was not killed."""

    def __init__(self, folder: Path, weights: Path, framework: str):
        self.weights, self.framework, self.out = weights, framework, folder / "out"
        self.songs = []
        for number in range(SONGS):
            song = folder / "songs" / f"{number:02}{('.wav', '.flac', '.mp3')[number % 3]}"
            audio.write(song, music(samples=20_000 + 3000 * number).astype("float32"), 44_100)
            self.songs.append(song)
        self.run_whole()
        self.whole = self.files()

    def start(self) -> subprocess.Popen:
        """Start the command in a process."""
        names = [str(song) for song in self.songs]
        options = ["--checkpoint", str(self.weights), "--out", str(self.out), "--two-stems", "vocals"]
        options += ["--framework", self.framework, "--overwrite"]
        code = "from twinsep.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, "separate", *names, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def run_whole(self) -> None:
        """Run the command to its end."""
        with self.start() as process:
            if process.wait(300):
                raise RuntimeError("the separation that was not killed failed")

    def files(self) -> dict[str, bytes]:
        """Contents of all files in the output folder by relative path, hidden ones included."""
        paths = (path for path in self.out.rglob("*") if path.is_file())
        return {path.relative_to(self.out).as_posix(): path.read_bytes() for path in paths}

    def kill(self, kills: int, seed: int, report: progress.ProgressCallback | None = None) -> list[dict[str, int]]:
        """Kill the command at random times after its first stem; every other time into the folder of the time before.

        Returns for each kill the number of complete stems in the folder, of hidden files, and of other files.
        """
        rng, ends = random.Random(seed), []
        for number in range(kills):
            if number % 2 == 0:
                for name in self.files():
                    (self.out / name).unlink()
            before = {name: (self.out / name).stat().st_ino for name in self.files()}
            with self.start() as process:
                while not self.has_new_stem(before):
                    if process.poll() is not None:
                        raise RuntimeError(f"the separation ended with {process.returncode} before it was killed")
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 1.0))
                process.send_signal(signal.SIGKILL)
                process.wait()
            left = self.files()
            hidden = len(hidden_files(left))
            stems = sum(data == self.whole.get(name) for name, data in left.items())
            if report:
                report(number + 1, kills)
            ends.append({"stems": stems, "hidden files": hidden, "other files": len(left) - stems - hidden})
        return ends

    def has_new_stem(self, before: dict[str, int]) -> bool:
        """Return True if there is a stem that is not among ``before``, inode numbers by relative path."""
        if not self.out.exists():
            return False
        return any(
            not path.name.startswith(".")
            and path.is_file()
            and before.get(path.relative_to(self.out).as_posix()) != path.stat().st_ino
            for path in self.out.rglob("*.*")
        )


def hidden_files(names: Iterable[str]) -> list[str]:
    """The paths among ``names`` of hidden files."""
    return [name for name in names if Path(name).name.startswith(".")]


def main() -> None:
    """Run the stage with the preset tiny and random weights."""
    with tempfile.TemporaryDirectory() as folder, progress.progress_bar("kills") as report:
        twinsep.load("tiny").save_pretrained(Path(folder) / "tiny")
        separation = Separation(Path(folder), Path(folder) / "tiny", "torch")
        ends = separation.kill(KILLS, 0, report)
        separation.run_whole()
        files = separation.files()
    record = {
        "what": "twinsep separate, of twelve short songs in WAV, FLAC and MP3, both stems, killed at random times; "
        "every other time it writes over the stems of the time before; hidden files are temporary ones, which the "
        "next run that is not killed removes",
        "kills": len(ends),
        "whole stems of 24 left after each": [end["stems"] for end in ends],
        "hidden files left after each": [end["hidden files"] for end in ends],
        "other files left": sum(end["other files"] for end in ends),
        "hidden files after the next whole run": len(hidden_files(files)),
        "the next whole run is as if nothing had been killed": files == separation.whole,
    }
    write_json(OUT, {**record, **provenance.describe("cpu")})


if __name__ == "__main__":
    run_stage(main)
