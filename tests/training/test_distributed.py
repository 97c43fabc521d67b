"""Several workers compute what one computes, on the same examples."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import distributed_steps

from twinsep import checkpoints
from twinsep.data.loader import TrainingBatches
from twinsep.errors import InputError
from twinsep.training import processes
from twinsep.training.loop import RunOptions, train
from twinsep.training.processes import Process
from twinsep.training.run_dir import FINAL, LAST
from twinsep.utils.backend import twin

pytestmark = pytest.mark.usefixtures("no_pictures")

STEPS, ACCUMULATION, BATCH = 3, 2, 4
#: Largest relative distances in float64. Moments after three steps add up what rounding makes of three gradients.
TOLERANCE = {"gradient/": 1e-12, "model/": 1e-12, "ema/": 1e-12, "losses": 1e-12, "adam_m/": 1e-11}
HELPER = Path(__file__).parents[1] / "helpers" / "distributed_steps.py"
# NPROC: on a pool of two threads, an exchange of one device and an FFT of the other can block both.
THREADS = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "NPROC": "16"}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(index, count):
    return {
        **os.environ,
        **THREADS,
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
    }


# ---------------------------------------------------------------------------- data


@pytest.mark.parametrize("first", [0, 6])
def test_processes_share_every_batch_and_leave_out_nothing(micro, first):
    config = micro.override({"training": {"batch_size": 4}})
    indices = []
    for process in (Process(), Process(0, 2), Process(1, 2)):
        with iter(TrainingBatches(config)) as stream:
            stream.process = process
            stream.set_state({"next_example": first})
            read = [next(stream) for _ in range(3)]
            assert stream.get_state() == {"next_example": first + 12}
        indices.append([batch["index"] for batch in read])
    whole, left, right = indices
    assert [tuple(a + b) for a, b in zip(left, right, strict=True)] == whole
    assert [i for batch in whole for i in batch] == list(range(first, first + 12))


def test_a_run_resumes_at_the_same_example_on_another_number_of_processes(micro):
    config = micro.override({"training": {"batch_size": 2}})
    with iter(TrainingBatches(config)) as stream:
        stream.process = Process(1, 2)
        next(stream)
        state = stream.get_state()
    with iter(TrainingBatches(config)) as stream:
        stream.set_state(state)
        assert next(stream)["index"] == (2, 3)


@pytest.mark.parametrize("variables", [("RANK", "WORLD_SIZE"), ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES")])
def test_the_environment_numbers_the_process(variables, monkeypatch):
    assert processes.current() == Process(0, 1)
    for index, count in (("1", "2"), ("2", "2"), ("one", "2")):
        for name, value in zip(variables, (index, count), strict=True):
            monkeypatch.setenv(name, value)
        if index == "1":
            assert processes.current() == Process(1, 2)
            assert not processes.current().is_main
        else:
            with pytest.raises(InputError, match=f"{variables[0]}={index} and .* do not number a process"):
                processes.current()


def test_a_batch_that_cannot_be_shared_is_refused(micro, tmp_path):
    with pytest.raises(InputError, match="--devices is for JAX: start PyTorch with torchrun"):
        train(micro, tmp_path, RunOptions(devices=2))
    with pytest.raises(InputError, match="--devices 99 is not possible: JAX has 1 of the kind cpu here"):
        train(micro, tmp_path, RunOptions("jax", devices=99))


# ---------------------------------------------------------------------------- gradients


@pytest.fixture
def steps(micro, tmp_path):
    """(file of batches, one of them loud beyond the loss's clip; function that runs the steps in processes)."""
    training = {"batch_size": BATCH, "accumulation": ACCUMULATION, "segment_seconds": 0.2}
    # Quiet and loud examples in one batch: the loudness weight and the clip depend on the whole batch.
    config = micro.override({"training": training})
    rng = np.random.default_rng(0)
    shape = (STEPS, ACCUMULATION, BATCH, 2, config.segment_samples)
    levels = np.array([0.01, 0.05, 0.2, 0.6])[:, None, None]
    mixture = levels * rng.standard_normal(shape)
    target = 0.5 * mixture + 0.3 * levels * rng.standard_normal(shape)
    source = tmp_path / "batches.npz"
    np.savez(source, config=config.to_dict(), mixture=mixture, target=target[:, :, :, None])

    def run(framework, count, devices=1, flags=""):
        out, port = tmp_path / f"{framework}-{count}-{devices}.npz", str(free_port())
        if count == devices == 1:  # in this process, which has imported everything
            try:
                distributed_steps.main(str(source), str(out), framework, 1)
            finally:
                jax.config.update("jax_enable_x64", False)
            return dict(np.load(out))
        command = [sys.executable, str(HELPER), str(source), str(out), framework, str(devices)]
        root = Path(__file__).parents[2]
        flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
        running = [
            subprocess.Popen(
                command,
                cwd=root,
                env={**environment(i, count), "MASTER_PORT": port, "PYTHONPATH": str(root), "XLA_FLAGS": flags}
                if count > 1
                else {**os.environ, **THREADS, "PYTHONPATH": str(root), "XLA_FLAGS": flags},
            )
            for i in range(count)
        ]
        assert [process.wait(300) for process in running] == [0] * count
        return dict(np.load(out))

    return run


def distances(found, wanted):
    assert found.keys() == wanted.keys()
    whole = {prefix: [n for n in wanted if n.startswith(prefix)] for prefix in TOLERANCE}
    return {
        prefix: np.sqrt(sum(np.sum((found[n] - wanted[n]) ** 2) for n in names))
        / np.sqrt(sum(np.sum(wanted[n] ** 2) for n in names))
        for prefix, names in whole.items()
    }


def test_two_processes_take_the_steps_of_one_in_pytorch(steps):
    one, two = steps("torch", 1), steps("torch", 2)
    found = distances(two, one)
    assert all(found[name] <= bound for name, bound in TOLERANCE.items()), found


def test_two_devices_take_the_steps_of_one_in_jax(steps):
    one, two = steps("jax", 1), steps("jax", 1, 2, "--xla_force_host_platform_device_count=2")
    found = distances(two, one)
    assert all(found[name] <= bound for name, bound in TOLERANCE.items()), found


# ---------------------------------------------------------------------------- runs


def test_a_run_killed_on_two_workers_and_resumed_on_one_ends_like_one_run(micro, tmp_path):
    config = micro.override({"training": {"batch_size": 2, "steps": 6, "validate_every": 2}})
    train(config, tmp_path / "whole")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())),
        *("-m", "twinsep.cli", "train", "--config", str(file), "--out", str(tmp_path / "parts"), "--device", "cpu"),
    ]
    job = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], env={**os.environ, **THREADS}, start_new_session=True
    )
    last = tmp_path / "parts" / LAST
    deadline = time.monotonic() + 300
    while not last.exists():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert checkpoints.read(last).step < 6
    train(config, tmp_path / "parts")
    whole, parts = (checkpoints.read(tmp_path / name / FINAL).weights("ema") for name in ("whole", "parts"))
    apart = np.sqrt(sum(np.sum((parts[name] - whole[name]) ** 2) for name in whole))
    assert apart <= 1e-4 * np.sqrt(sum(np.sum(w**2) for w in whole.values()))


def test_a_worker_that_dies_ends_the_job_with_its_sentence(micro, tmp_path):
    config = micro.override({"training": {"batch_size": 3}})
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())),
        *("-m", "twinsep.cli", "train", "--config", str(file), "--out", str(tmp_path / "run"), "--device", "cpu"),
    ]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **THREADS},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode
    assert "twinsep: training.batch_size 3 is not divisible by 2 workers: set it to a multiple" in done.stderr
    assert not (tmp_path / "run").exists()


def test_workers_of_one_process_are_one():
    for framework, one in (("torch", torch.ones(())), ("jax", jnp.ones(()))):
        workers = twin(framework, "distributed").Workers("cpu")
        assert workers.size == 1
        assert workers.mean(one) is one


@pytest.mark.parametrize(
    ("framework", "variables", "sentence"),
    [
        (
            "torch",
            ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
            "need MASTER_ADDR and MASTER_PORT: start them with torchrun",
        ),
        ("jax", ("RANK", "WORLD_SIZE"), "need JAX_COORDINATOR_ADDRESS: see jax_impl/README.md"),
    ],
)
def test_processes_without_the_address_of_the_first_are_refused(framework, variables, sentence, monkeypatch):
    for name, value in zip(variables, ("0", "2"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=sentence):
        twin(framework, "distributed").Workers("cpu")
