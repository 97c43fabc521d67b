"""Killed runs and damaged checkpoints: the folder stays consistent, and the resumed run ends with the same weights.

Two runs with one seed are therefore identical, down to the file of their scores.
"""

import shutil

import numpy as np
import pytest

from ablations.fault_injection import difference, killed, step_of
from torch_impl.train import Trainer
from twinsep import checkpoints
from twinsep.errors import InputError, OutOfMemoryError
from twinsep.evaluation import evaluate
from twinsep.training import run_dir
from twinsep.training.loop import RunOptions, train
from twinsep.training.run_dir import BEST, LAST, NEXT, PREVIOUS, RECORD

pytestmark = pytest.mark.usefixtures("no_pictures")

#: Framework → number of kills.
KILLS = {"torch": 2, "jax": 1}
#: Turns off the spectrograms in another process.
BLANK = "from twinsep.audio import spectrogram\nspectrogram.draw_spectrograms = lambda *_, **__: b''\n"


@pytest.fixture
def micro(micro):
    """The mixer and the bands that compile fastest, and many checkpoints for a kill to fall between."""
    training = {"steps": 12, "validate_every": 4, "segment_seconds": 0.2, "warmup_steps": 4}
    model = {"mixer": {"kind": "conv", "kernel": 3}, "bands": "bsroformer62", "memory_tokens": [0, 0, 0, 0]}
    return micro.override({"model": model, "training": training})


@pytest.mark.parametrize("framework", KILLS)
def test_a_killed_run_ends_like_an_uninterrupted_one(micro, tmp_path, framework):
    micro = micro.override({"training": {"steps": 20, "validate_every": 5}})
    train(micro, tmp_path / "whole", RunOptions(framework))
    options = {"framework": framework, "prelude": BLANK}
    ends = killed(micro, tmp_path / "parts", KILLS[framework], seed=3, longest=0.3, **options)
    assert all(end["step after"] >= end["step before"] for end in ends)
    assert 0 < ends[-1]["step after"] < micro.training.steps  # otherwise the test would show nothing
    train(micro, tmp_path / "parts", RunOptions(framework))
    for name in (LAST, BEST):
        whole, parts = (checkpoints.read(tmp_path / run / name) for run in ("whole", "parts"))
        assert difference(whole, parts) == []
    assert scores(tmp_path / "whole", framework) == scores(tmp_path / "parts", framework)
    files = [{path.name for path in (tmp_path / run).iterdir()} for run in ("whole", "parts")]
    assert files[0] == files[1]
    tables = [sorted((tmp_path / run / "live" / "plots").rglob("*.tsv")) for run in ("whole", "parts")]
    for a, b in zip(*tables, strict=True):
        if "machine" not in a.parts:
            assert _rows(a) == _rows(b)


def scores(run, framework):
    """Evaluate the best checkpoint of ``run``; return the bytes of ``metrics.json``."""
    evaluate.evaluate_checkpoint(run / BEST, out=run, splits=["test"], framework=framework, overwrite=True)
    return (run / "metrics.json").read_bytes()


def _rows(table):
    """(step, value) of each line, without the time of day."""
    head, *lines = (line.split("\t") for line in table.read_text().splitlines())
    return [[cell for name, cell in zip(head, line, strict=True) if name != "timestamp"] for line in lines]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Folder of the stopped run that the tests copy."""
    return tmp_path_factory.mktemp("stopped") / "run"


@pytest.fixture
def stopped(micro, kept, tmp_path, stopping):
    """Copy of a run that stopped in its tenth step, with its last and previous checkpoints at steps 8 and 4."""
    if not kept.exists():
        with stopping(Trainer, 10):
            train(micro, kept)
        assert [checkpoints.read(kept / name).step for name in (LAST, PREVIOUS)] == [8, 4]
    return shutil.copytree(kept, tmp_path / "run")


def cut(path):
    """Keep only the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_is_skipped_with_a_sentence(micro, stopped, capsys):
    cut(stopped / LAST)
    train(micro, stopped)
    said = " ".join(capsys.readouterr().err.split())
    assert "last.safetensors: not a whole safetensors file" in said
    assert "resuming from previous.safetensors, step 4" in said
    assert "resuming" in said
    assert [checkpoints.read(stopped / name).step for name in (LAST, PREVIOUS)] == [12, 8]


def test_a_run_whose_checkpoints_are_all_damaged_is_left_alone_without_overwrite(micro, stopped):
    cut(stopped / LAST)
    cut(stopped / PREVIOUS)
    with pytest.raises(
        InputError, match=r"last\.safetensors: not a whole .*, or pass --overwrite to start this run again"
    ):
        train(micro, stopped)
    assert (stopped / LAST).exists()
    train(micro, stopped, RunOptions(overwrite=True))
    assert checkpoints.read(stopped / LAST).step == 12


@pytest.mark.parametrize("moment", ["written", "moved"])
def test_a_kill_between_two_renames_loses_nothing(stopped, moment):
    """The new checkpoint is complete before the last one moves, and the newest complete one is found."""
    whole = checkpoints.read(stopped / LAST)
    if moment == "moved":
        (stopped / LAST).replace(stopped / NEXT)
    else:
        (stopped / LAST).replace(stopped / NEXT)
        (stopped / PREVIOUS).replace(stopped / LAST)
    found = run_dir.newest_checkpoint(stopped, pytest.fail)
    assert difference(found, whole) == []


def test_only_the_pipeline_restarts_an_unfinished_run_of_other_code_or_data(micro, stopped, capsys):
    pipeline = RunOptions(overwrite=True, basis="other code")
    assert run_dir.find_resumable(micro, stopped, overwrite=True, basis="", print_line=pytest.fail).step == 8
    train(micro, stopped, pipeline)
    assert "unfinished run of other code or data; starting again" in " ".join(capsys.readouterr().err.split())
    assert checkpoints.read(stopped / LAST).provenance["basis"] == "other code"


def test_a_run_killed_before_its_record_writes_it(micro, stopped):
    train(micro, stopped)
    assert (stopped / RECORD).exists()
    # The record is written before the last checkpoint: a kill between the two leaves a run to resume.
    (stopped / LAST).unlink()
    assert run_dir.find_resumable(micro, stopped, overwrite=False, basis="", print_line=pytest.fail).step == 8


def test_a_run_is_overwritten_only_once_the_new_one_can_start(micro, stopped):
    """A finished run is not lost to one that cannot start."""
    train(micro, stopped)
    written = (stopped / LAST).read_bytes()
    with pytest.raises(InputError, match="'abacus' cannot be used here"):
        train(micro, stopped, RunOptions(device="abacus", overwrite=True))
    assert (stopped / LAST).read_bytes() == written
    assert (stopped / RECORD).exists()


def test_running_out_of_memory_is_one_sentence(micro, stopped, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried")

    before = (stopped / LAST).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", fail)
        with pytest.raises(OutOfMemoryError, match=r"step 9: memory ran out; the last good checkpoint is .*batch_size"):
            train(micro, stopped)
    assert (stopped / LAST).read_bytes() == before


def test_random_modules_draw_the_same_numbers_after_a_resume(micro):
    """Our modules draw none; one that a user adds may, from PyTorch's global generator."""
    import torch

    def trainer():
        made = Trainer(micro)
        made.model.register_forward_hook(lambda *call: torch.nn.functional.dropout(call[2], 0.1))
        return made

    rng = np.random.default_rng(0)
    mixture = (0.1 * rng.standard_normal((1, 2, 4000))).astype(np.float32)
    batch = {"mixture": mixture, "target": 0.5 * mixture[:, None]}
    whole, parts = trainer(), trainer()
    for _ in range(2):
        whole.step([batch], 1e-3, 0.5)
        parts.step([batch], 1e-3, 0.5)
    resumed = trainer()
    resumed.restore(parts.state(), 2)
    torch.manual_seed(99)
    losses = [one.step([batch], 1e-3, 0.5)["loss"] for one in (whole, resumed)]
    assert losses[0] == losses[1]


def test_the_step_of_an_empty_folder_is_zero(tmp_path):
    assert step_of(tmp_path) == 0
