"""Commands that run side by side: cores, threads, labels and failures."""

import os
import textwrap

import pytest

from ablations import side_by_side
from twinsep.errors import INTERRUPTED, Interrupted, TwinsepError


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that the commands can run; returns its name."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(code):
        (tmp_path / "what_runs.py").write_text(textwrap.dedent(code))
        return "what_runs"

    return write


def test_each_command_has_a_core_and_a_thread_and_its_lines_are_labelled(module, capsys):
    name = module(
        """
        import os, sys
        print(sys.argv[1], len(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"], os.environ["NUMBA_NUM_THREADS"])
        print("to the standard error", file=sys.stderr)
        """
    )
    before = os.sched_getaffinity(0)
    side_by_side.run_modules({f"seed {n}": [name, str(n)] for n in range(3)})
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == sorted(
        line for n in range(3) for line in (f"seed {n}: {n} 1 1 1", f"seed {n}: to the standard error")
    )
    assert os.sched_getaffinity(0) == before


def test_as_many_commands_run_at_a_time_as_there_are_cores_and_on_a_gpu_one(module, tmp_path, monkeypatch, capsys):
    name = module(
        f"""
        import pathlib, sys, time
        folder, patience = pathlib.Path({str(tmp_path)!r}) / sys.argv[1], float(sys.argv[2])
        folder.mkdir(exist_ok=True)
        (folder / sys.argv[3]).touch()
        deadline = time.monotonic() + patience
        while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        print(len(list(folder.iterdir())))
        """
    )
    monkeypatch.setattr(side_by_side, "available_cores", lambda: [min(os.sched_getaffinity(0))] * 2)
    side_by_side.run_modules({n: [name, "cpu", "60", n] for n in ("a", "b")})
    assert sorted(capsys.readouterr().err.splitlines()) == ["a: 2", "b: 2"]
    side_by_side.run_modules({n: [name, "gpu", "0.5", n] for n in ("a", "b")}, device="cuda")
    assert capsys.readouterr().err.splitlines() == ["a: 1", "b: 2"]


def test_all_commands_end_before_a_failure_is_reported(module, capsys):
    name = module(
        """
        import sys
        print("said")
        sys.exit(int(sys.argv[1]))
        """
    )
    with pytest.raises(
        TwinsepError, match=r"^bad failed, as said above; the same command resumes the unfinished runs$"
    ):
        side_by_side.run_modules({"bad": [name, "2"], "good": [name, "0"]})
    assert {"bad: said", "good: said"} <= set(capsys.readouterr().err.splitlines())
    with pytest.raises(Interrupted):
        side_by_side.run_modules({"bad": [name, "2"], "stopped": [name, str(INTERRUPTED)]})
