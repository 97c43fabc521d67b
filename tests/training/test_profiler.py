"""``twinsep train --profile``: the most expensive operations, as a trace and as a table."""

import gzip
import importlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from twinsep.errors import InputError
from twinsep.training import profiler

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def micro(micro):
    """The model that compiles fastest."""
    model = {"mixer": {"kind": "conv", "kernel": 3}, "bands": "bsroformer62", "memory_tokens": [0, 0, 0, 0]}
    return micro.override({"model": model, "training": {"segment_seconds": 0.2}})


@pytest.mark.parametrize(("framework", "trace"), [("torch", "torch.json.gz"), ("jax", "jax/**/*.trace.json.gz")])
def test_the_most_expensive_operations_of_a_step_are_traced_and_printed(
    micro, tmp_path, capsys, monkeypatch, framework, trace
):
    monkeypatch.setenv("COLUMNS", "200")
    taken = []
    trainer = importlib.import_module(f"{framework}_impl.train").Trainer
    step = trainer.step
    monkeypatch.setattr(trainer, "step", lambda self, *args: (taken.append(args), step(self, *args))[1])
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/earlier").write_text("")
    costs = profiler.profile_steps(micro, tmp_path, framework=framework, device="cpu", steps=2)
    assert len(costs) == 10
    assert [seconds for _, seconds, _ in costs] == sorted((seconds for _, seconds, _ in costs), reverse=True)
    if framework == "torch":
        assert any(name.startswith("aten::") for name, _, _ in costs)
    else:
        assert all(re.fullmatch(r"[a-z][\w-]*", name) for name, _, _ in costs)  # HLO names without instance numbers

    t = micro.training
    assert len(taken) == profiler.WARM_UP + 2
    assert {tuple(rest) for _, *rest in taken} == {(t.learning_rate, t.ema_decay)}
    assert len({batches[0]["index"] for batches, *_ in taken}) == len(taken)  # each a batch of its own

    assert [path.name for path in tmp_path.iterdir()] == ["profile"]
    assert not (tmp_path / "profile/earlier").exists()
    (found,) = (tmp_path / "profile").glob(trace)
    events = json.loads(gzip.decompress(found.read_bytes()))["traceEvents"]
    traced = {re.sub(r"(\.(\d+|clone))+$", "", event["name"]) for event in events if event.get("ph") == "X"}
    assert traced >= {name for name, _, _ in costs}
    printed = capsys.readouterr()
    for name, seconds, calls in costs:
        assert re.search(rf"{re.escape(name)} .*{1000 * seconds / 2:.3f} .*%.* {calls / 2:g} ", printed.out)
    assert f"the trace is {found}; open it" in printed.err


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_failure_leaves_the_folder_unchanged(micro, tmp_path, monkeypatch, framework):
    taken = []

    def fail(*_):
        taken.append(1)
        if len(taken) > profiler.WARM_UP:  # within the trace
            raise InputError("a song is damaged")

    monkeypatch.setattr(importlib.import_module(f"{framework}_impl.train").Trainer, "step", fail)
    (tmp_path / "run/profile").mkdir(parents=True)
    (tmp_path / "run/profile/earlier").write_text("")
    for folder, left in (("run", ["run/profile", "run/profile/earlier"]), ("new", [])):
        taken.clear()
        with pytest.raises(InputError, match="damaged"):
            profiler.profile_steps(micro, tmp_path / folder, framework=framework, device="cpu", steps=1)
        assert [p.relative_to(tmp_path).as_posix() for p in sorted((tmp_path / folder).rglob("*"))] == left
    assert not (tmp_path / "new").exists()


def test_bad_requests_are_refused_before_anything_is_written(micro, tmp_path):
    with pytest.raises(InputError, match="at least 1"):
        profiler.profile_steps(micro, tmp_path / "run", framework="torch", device="cpu", steps=0)
    with pytest.raises(InputError, match="unknown framework"):
        profiler.profile_steps(micro, tmp_path / "run", framework="numpy", device="cpu", steps=1)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="is a file: choose a folder as --out"):
        profiler.profile_steps(micro, tmp_path / "file", framework="torch", device="cpu", steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_matrix_product_is_the_only_cost_of_a_matrix_product(tmp_path):
    import jax

    a = torch.ones(600, 600)
    (name, seconds, calls), *_ = profiler.torch_profile(lambda: a @ a, 3, tmp_path)
    assert (name, calls) == ("aten::mm", 3)
    assert 1e-5 < seconds < 1
    b = jax.numpy.ones((600, 600))
    product = jax.jit(lambda b: b @ b)
    product(b).block_until_ready()
    (name, seconds, calls), *_ = profiler.jax_profile(lambda: product(b).block_until_ready(), 3, tmp_path)
    assert calls == 3
    assert re.fullmatch(r"\w*(dot|ynn)\w*", name)
    assert 1e-5 < seconds < 1


def test_time_within_another_operation_is_counted_once():
    def event(start, end, operation):
        stats = [("hlo_op", operation)] if operation else []
        return SimpleNamespace(start_ns=start, duration_ns=end - start, stats=stats)

    events = [
        event(10, 30, "dot.2"),
        event(0, 100, "while.7"),
        event(0, 100, None),
        event(30, 60, "call"),
        event(35, 50, "dot.2.clone.1"),
        event(100, 105, "add"),
    ]
    names, seconds, calls = zip(*profiler._summed(profiler._operations(events)), strict=True)
    assert names == ("while", "dot", "call", "add")
    assert seconds == pytest.approx((50e-9, 35e-9, 15e-9, 5e-9))
    assert calls == (1, 2, 1, 1)


def test_names_with_brackets_are_printed_as_they_are(capsys):
    profiler._print_table([("kernel<[lambda(float)]>", 0.5, 2), ("[bold]", 0.25, 2)], 2, "title")
    printed = capsys.readouterr().out
    assert "kernel<[lambda(float)]>" in printed
    assert "[bold]" in printed
    assert "66.7%" in printed
    assert np.isclose(250, float(re.search(r"(\d+\.\d+) ", printed)[1]))
