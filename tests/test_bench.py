"""What ``twinsep bench`` writes, refuses and leaves running. Nothing is timed; sizes are those of a toy."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from twinsep import bench, cli, feeding, lengths, speed, workers
from twinsep.config import preset
from twinsep.errors import InputError, TwinsepError
from twinsep.frameworks import twin
from twinsep.workers import MIB, Subject, Watch, Worker

#: A model of thousands of weights on a third of a second.
MICRO = {
    "model": {"d_model": 8, "bands": "vocal18", "mixer": {"kind": "mamba", "d_state": 4}},
    "training": {"segment_seconds": 0.3},
}
TOY = {"sequences": 2, "length": 16, "d_model": 8, "d_state": 4, "expand": 2}


@pytest.fixture
def subject():
    """PyTorch with a small trainer, in this process."""
    subject = Subject("torch")
    assert subject.open(preset("tiny").override(MICRO).to_dict())["threads"] >= 1
    return subject


class Scripted:
    """Stands for a worker: notes every question, answers with the number of questions so far."""

    asked: list[tuple[str, str]]

    def __init__(self, framework):
        self.framework = framework

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.asked.append((self.framework, "killed"))

    def ask(self, method, **_):
        self.asked.append((self.framework, method))
        if method == "system":
            return {"parameters": 1000, "chunk_s": 2.0}
        if method == "roofline":
            return {"matrix_flop_per_s": 10.0, "exponentials_per_s": 5.0, "copied_bytes_per_s": 1.0}
        if method == "operations":
            return {"flop_per_audio_second": 20.0, "exponentials_per_audio_second": 15.0}
        if method == "layer":
            return {"peak_mib": 100.0 if self.framework == "torch" else 2000.0, "compiler_peak_mib": 0.0}
        return float(len(self.asked))


@pytest.fixture
def asked(monkeypatch):
    """The questions put to workers that only note them."""
    monkeypatch.setattr(Scripted, "asked", [], raising=False)
    monkeypatch.setattr(bench, "Worker", Scripted)
    monkeypatch.setattr(feeding, "Worker", Scripted)
    monkeypatch.setattr(speed, "Worker", Scripted)
    monkeypatch.setattr(lengths, "SECONDS", (1, 2))
    monkeypatch.setattr(lengths, "BARS", {(2, 1): 1.5})
    monkeypatch.setattr(lengths, "_separated", lambda *_: {"wall_s": 2.0, "peak_mib": 100.0})
    for name, value in {"SONGS": 1, "SECONDS": 1, "EXAMPLES": 2}.items():
        monkeypatch.setattr(feeding, name, value)
    return Scripted.asked


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run ``twinsep bench`` with these arguments in an empty folder; gives (exit status, output, standard error)."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["twinsep", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return run


def test_frameworks_alternate_and_first_calls_and_warm_ups_do_not_count(asked):
    done = []
    record = bench.twins(bench.Options(preset("tiny"), 1, 3), lambda *counts: done.append(counts))
    both = ["torch", "jax"]
    sequence = ["open", *2 * ["step"], *2 * ["separate"], "peak", *3 * ["step"], *3 * ["separate"], "peak", "last_loss"]
    assert asked == [(f, work) for work in sequence for f in both] + [("jax", "killed"), ("torch", "killed")]
    # The answers are 1, 2, 3 … in the order of the questions.
    assert record["step"]["torch"] == {
        "first_call_s": 3.0,
        "median_s": 15.0,
        "minimum_s": 13.0,
        "times_s": [13.0, 15.0, 17.0],
    }
    assert record["separate"]["jax"] == {
        "first_call_s": 8.0,
        "median_s": 22.0,
        "minimum_s": 20.0,
        "times_s": [20.0, 22.0, 24.0],
    }
    assert record["step"]["ratio_of_medians"] == round(16 / 15, 3)
    assert record["step"]["ratio_of_minima"] == round(14 / 13, 3)
    assert record["peak_memory_mib"]["first calls and warm-ups"] == {"torch": 11.0, "jax": 12.0}
    assert done == [(n, 20) for n in range(1, 21)]


def test_memory_stands_beside_the_bar_and_the_state(asked):
    record = bench.memory(bench.Options(preset("tiny"), 0, 1), lambda *_: None)
    assert asked == [(f, what) for f in ("torch", "jax") for what in ("layer", "killed")]
    assert record["below_bar"] == {"torch": True, "jax": False}
    assert record["materialised_state_mib"] == round(68 * 690 * 512 * 32 * 4 / MIB, 1)
    assert bench.BAR_MB == 1500


@pytest.mark.usefixtures("asked")
def test_the_command_writes_a_record_each_and_prints_them(call, tmp_path):
    status, printed, said = call("--repetitions", 2, "--set", "training.segment_seconds=0.5")
    assert status == 0, said
    written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "work/results/bench").iterdir()}
    assert written.keys() == bench.BENCHMARKS.keys() == {"twins", "memory", "scan", "feeding", "length", "speed"}
    for name, record in written.items():
        assert {"load_average_at_start", "cores", "command", "commit", "device", "versions"} <= record.keys()
        assert name in printed
    assert written["twins"]["configuration"]["training"]["segment_seconds"] == 0.5
    assert len(written["twins"]["step"]["jax"]["times_s"]) == 2


@pytest.mark.usefixtures("asked")
def test_one_benchmark_by_name(call, tmp_path):
    assert call("memory", "memory", "--out", "here")[0] == 0
    assert [path.name for path in (tmp_path / "work/here").iterdir()] == ["memory.json"]


def test_bad_arguments_end_in_a_sentence_before_anything_is_measured(call, asked, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, sentence in [
        (("pace",), "unknown benchmark 'pace'; known: twins, memory, scan"),
        (("--repetitions", 0), "0 repetitions"),
        (("--warmups=-1",), "-1 warm-ups"),
        (("--preset", "huge"), "unknown preset 'huge'"),
        (("--preset", "tiny", "--config", "c.yaml"), "give either"),
        (("--out", tmp_path / "file"), "no folder that may be written"),
        (("--out", tmp_path / "file" / "below"), "no folder that may be written"),
    ]:
        status, printed, said = call(*arguments)
        assert status == 2, arguments
        assert sentence in said
        assert printed == ""
        assert len([line for line in said.splitlines() if line.startswith("twinsep: ")]) == 1
        assert "Traceback" not in said
    assert asked == []
    assert list((tmp_path / "work").iterdir()) == []


def test_a_worker_tells_what_the_twins_refuse():
    with Worker("abacus") as worker, pytest.raises(InputError, match="unknown framework 'abacus'; known: torch, jax"):
        worker.ask("layer", sizes=TOY)


def test_a_missing_framework_ends_in_a_sentence(call, monkeypatch, tmp_path):
    """In the workers Python looks here first, and this JAX cannot be imported."""
    (tmp_path / "jax.py").write_text("raise ModuleNotFoundError('no JAX', name='jax')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, Path(__file__).parent.parent))))
    monkeypatch.setattr(bench, "TWINS", {"jax": "jax_impl"})
    status, _, said = call("memory")
    assert status == 2
    assert "framework jax needs the package jax; install it with: pip install 'twinsep[jax]'" in said
    assert "Traceback" not in said


def test_a_worker_that_dies_is_named_with_its_signal():
    with Worker("torch") as worker:
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(TwinsepError, match=r"process of torch ended during 'peak' \(signal 9, perhaps"):
            worker.ask("peak")


def test_an_interruption_kills_the_workers():
    processes = []

    def interrupted():
        with Worker("torch") as worker, Worker("jax") as other:
            processes.extend([worker.process, other.process])
            assert worker.ask("peak") > 0
            # A signal to the group of the asking process, as the terminal sends it, does not reach them.
            assert all(os.getpgid(process.pid) != os.getpgid(0) for process in processes)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [process.returncode for process in processes] == [-9, -9]


def test_a_subject_steps_and_separates(subject):
    before = subject.trainer.state()
    assert subject.step() > 0
    assert any((before[name] != after).any() for name, after in subject.trainer.state().items())
    assert subject.last_loss() > 0
    assert subject.separate() > 0


def test_a_loss_that_is_not_finite_is_refused(subject):
    subject.batch["mixture"][:] = float("nan")
    with pytest.raises(TwinsepError, match="not finite"):
        subject.step()


def test_memory_of_a_layer_in_a_worker():
    with Worker("jax") as worker:
        found = worker.ask("layer", sizes=TOY)
    assert found.keys() == {"peak_mib", "compiler_peak_mib", "resident_before_mib", "source", "setting"}
    # The layer at this size takes kilobytes: pages at most, of a process of hundreds of megabytes.
    assert 0 <= found["peak_mib"] < 50 < found["resident_before_mib"]


def test_both_twins_compute_the_same_layer():
    """Outputs and gradients of what ``memory`` measures: first for the input, then for the weights."""
    import jax

    x, dy = workers.noise(2, 16, 8, seed=0), workers.noise(2, 16, 8, seed=1)
    mixer = {"kind": "mamba", "d_state": 4, "expand": 2}
    model = preset("paper").override({"model": {"d_model": 8, "mixer": mixer}}).model
    found = {}
    for framework, prepare in (("torch", workers._layer_in_torch), ("jax", workers._layer_in_jax)):
        module = twin(framework, "mixers").build(model)
        twin(framework, "layers").initialise(module, 0)
        found[framework] = prepare(module, x, dy)()()
    y, (dx, *dweights) = found["torch"]
    np.testing.assert_allclose(found["jax"][0], y.detach().numpy(), rtol=1e-4, atol=1e-6)
    jax_dweights, jax_dx = found["jax"][1]
    np.testing.assert_allclose(jax_dx, dx.numpy(), rtol=1e-4, atol=1e-6)
    assert sorted(w.shape for w in jax.tree.leaves(jax_dweights)) == sorted(tuple(w.shape) for w in dweights)


def test_a_watch_sees_a_peak_that_is_over():
    watch = Watch()
    block = np.ones(64 * MIB // 8)
    del block
    if not watch.source.startswith("VmHWM"):
        pytest.skip("the peak cannot be reset here: an earlier one may hide this one")
    peak = watch.peak()
    assert peak - watch.before == pytest.approx(64, abs=8)
    assert Watch().peak() < peak - 50


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("backward", [False, True])
def test_a_scan_is_timed(framework, backward):
    ways = ["default", "definition"] + ["sequential", "associative"] * (framework == "jax")
    for way in ways:
        assert Subject(framework).scan([2, 12, 3, 2], way, backward, repetitions=1) > 0


def test_every_way_stands_beside_the_kernel(asked):
    record = bench.scan(bench.Options(preset("tiny"), 0, 1), lambda *_: None)
    rows = bench.BENCHMARKS["scan"].rows(record)
    assert len(rows) == len(bench.SCANS) * 5  # three ways forward, two of them backward
    first = rows[0]
    assert first[0] == "(72, 259, 32, 8), sequential, forward (s)"
    assert first[1] == {"torch": 1.0, "jax": 3.0}
    assert asked.count(("torch", "scan")) == 2 * len(bench.SCANS)


# ---------------------------------------------------------------------------- lengths and speed


def test_the_cost_of_a_length_is_that_of_a_real_separation(monkeypatch):
    for name, value in {"SECONDS": (1, 2), "BARS": {(2, 1): 1.2}, "TWINS": ("torch",)}.items():
        monkeypatch.setattr(lengths, name, value)
    record = lengths.measure(lambda *_: None)
    assert [song["seconds"] for song in record["songs"]] == [1, 2]
    for song in record["songs"]:
        assert song["wall_s"] > 0.5
        assert 150 < song["peak_mib"] < 3000
    (ratio,) = record["peak_memory_ratios"]
    assert ratio["torch"] == round(record["songs"][1]["peak_mib"] / record["songs"][0]["peak_mib"], 4)


def test_the_figures_of_speed():
    seconds = {"tiny": 0.1, "small": 1.0, "paper": 7.0, **dict.fromkeys(speed.OTHERS, 2.0)}
    systems = [
        {"framework": f, "system": name, "seconds_per_audio_second": seconds[name] * (1 + (f == "jax"))}
        for f, name in speed.SYSTEMS
    ]
    counts = {"flop_per_audio_second": 20.0, "exponentials_per_audio_second": 15.0}
    counted = {name: counts for name in speed.PRESETS}
    found = speed.figures(systems, {"matrix_flop_per_s": 10.0, "exponentials_per_s": 5.0}, counted)
    # 20/10 + 15/5 seconds at the machine's best, against 7; bs-roformer 2; JAX twice PyTorch.
    assert [f["value"] for f in found] == [1.4, 3.5, 0.5, 0.5, 0.1, 2.0, 2.0]
    assert [f["reached"] for f in found] == [True, False, True, True, True, False, False]


def test_the_counts_and_limits_of_a_real_machine(monkeypatch):
    subject = Subject("torch")
    opened = subject.system("tiny")
    assert opened["parameters"] == 235_444
    assert subject.chunk() > 0
    roofline = subject.roofline()
    assert roofline["matrix_flop_per_s"] > 1e9
    assert 1e7 < roofline["exponentials_per_s"] < roofline["matrix_flop_per_s"]
    with Worker("torch") as worker:  # whose types are not checked: it counts on tensors that are none
        counted = worker.ask("operations", name="tiny")
    assert 0 < counted["exponentials_per_audio_second"] < counted["flop_per_audio_second"]
    monkeypatch.setitem(sys.modules, "bs_roformer", None)
    with pytest.raises(InputError, match=r"needs the package \w+; install it with: pip install 'twinsep\[peers\]'"):
        subject.system("bs-roformer")
