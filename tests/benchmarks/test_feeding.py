"""Record of ``twinsep bench feeding``, with small songs and scripted workers; no test depends on real time."""

from types import SimpleNamespace

import pytest

from twinsep import audio
from twinsep.benchmarks import feeding, suite
from twinsep.benchmarks.records import BenchmarkOptions
from twinsep.config import preset

SIZES = {"SONGS": 2, "SECONDS": 1, "EXAMPLES": 3}


class Worker:
    """Stands in for a worker process: a step takes 0.1 s in torch, 0.2 s in jax."""

    def __init__(self, framework):
        self.framework = framework

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, method, **_):
        return {"open": {"threads": 1}, "step": 0.1 if self.framework == "torch" else 0.2}[method]


@pytest.fixture
def small(monkeypatch):
    for name, value in SIZES.items():
        monkeypatch.setattr(feeding, name, value)
    monkeypatch.setattr(feeding, "WorkerProcess", Worker)


@pytest.mark.usefixtures("small")
def test_the_speeds_of_loader_and_steps_are_compared(monkeypatch):
    made, asked, clock, seconds = [], [], [0.0], iter([1.0, 2.0, 4.0, 10.0, 20.0, 40.0])

    def perf_counter():
        """Called in turns at the start and at the end of a repetition of three examples."""
        asked.append(0)
        if len(asked) % 2 == 0:
            clock[0] += next(seconds)
        return clock[0]

    write = audio.write
    monkeypatch.setattr(audio, "write", lambda path, *rest, **named: made.append(path) or write(path, *rest, **named))
    monkeypatch.setattr(feeding, "time", SimpleNamespace(perf_counter=perf_counter))
    training = {"segment_seconds": 0.5, "batch_size": 4}
    config = preset("tiny").override({"training": training, "data": {"exclude": ["x"]}})
    done = []
    record = suite.BENCHMARKS["feeding"].measure(
        BenchmarkOptions({"this": config}, 1, 1), lambda *counts: done.append(counts)
    )
    assert record["configuration"]["training"]["batch_size"] == 1
    assert record["step_audio_s_per_s"] == {"torch": 5.0, "jax": 2.5}
    assert record["loader_audio_s_per_s"] == {"wav": 0.375, "flac": 0.037}  # only the last of three repetitions counts
    assert record["loader_over_step"]["wav"] == {"torch": 0.075, "jax": 0.15}
    assert record["reaches_target"]["wav"] == {"torch": False, "jax": False}
    assert record["target"] == 5
    assert done == [(n, 12) for n in range(1, 13)]
    assert len(made) == 2 * 2 * 4
    assert {path.suffix for path in made} == {".wav", ".flac"}
    assert not any(path.exists() for path in made)
    rows = suite.BENCHMARKS["feeding"].rows(record)
    assert rows[0] == ("training step (audio s/s)", {"torch": 5.0, "jax": 2.5})
    assert rows[1] == ("loader, wav (audio s/s)", {"torch": 0.375, "jax": 0.375})
    assert rows[3] == ("loader, wav / step (at least 5)", {"torch": 0.075, "jax": 0.15})
    suite._print_table("feeding", rows)


@pytest.mark.usefixtures("small")
def test_either_file_format_has_a_positive_speed(monkeypatch):
    monkeypatch.setattr(feeding, "TARGET", 0)
    config = preset("tiny").override({"training": {"segment_seconds": 0.1}})
    record = feeding.measure(BenchmarkOptions({"this": config}, 0, 2), lambda *_: None)
    assert all(speed > 0 for speed in record["loader_audio_s_per_s"].values())
    assert record["reaches_target"] == {"wav": {"torch": True, "jax": True}, "flac": {"torch": True, "jax": True}}
