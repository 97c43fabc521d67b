"""Runs that are killed, and whose files are damaged: what is left is whole, and the end is the same.

So two runs from one seed are one run, up to the file of their scores.
"""

import shutil

import numpy as np
import pytest

from ablations.fault_injection import difference, killed, step_of
from torch_impl.train import Trainer
from twinsep import checkpoints
from twinsep.audio import spectrogram
from twinsep.errors import InputError, OutOfMemoryError
from twinsep.evaluation import evaluate
from twinsep.training import run_dir
from twinsep.training.loop import RunOptions, train
from twinsep.training.run_dir import BEST, LAST, NEXT, PREVIOUS, RECORD

KILLS = {"torch": 2, "jax": 1}
#: Nothing here looks at the pictures of songs, each of which takes longer than the steps between two of them.
BLANK = "from twinsep.audio import spectrogram\nspectrogram.draw_spectrograms = lambda *_, **__: b''\n"


@pytest.fixture(autouse=True)
def blank(monkeypatch):
    monkeypatch.setattr(spectrogram, "draw_spectrograms", lambda *_, **__: b"")


@pytest.fixture
def micro(micro):
    """With the mixer and the bands that compile fastest, and many checkpoints for a kill to fall between."""
    training = {"steps": 12, "validate_every": 4, "segment_seconds": 0.2, "warmup_steps": 4}
    model = {"mixer": {"kind": "conv", "kernel": 3}, "bands": "bsroformer62", "memory_tokens": [0, 0, 0, 0]}
    return micro.override({"model": model, "training": training})


@pytest.mark.parametrize("framework", KILLS)
def test_a_killed_run_ends_as_one_never_interrupted(micro, tmp_path, framework):
    micro = micro.override({"training": {"steps": 20, "validate_every": 5}})
    train(micro, tmp_path / "whole", RunOptions(framework))
    how = {"framework": framework, "prelude": BLANK}
    ends = killed(micro, tmp_path / "parts", KILLS[framework], seed=3, longest=0.3, **how)
    assert all(end["step after"] >= end["step before"] for end in ends)
    assert 0 < ends[-1]["step after"] < micro.training.steps  # or it would prove nothing
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
    """The file of an evaluation of its best checkpoint."""
    evaluate.evaluate(
        str(run / BEST),
        None,
        out=run,
        root=None,
        splits=["test"],
        museval=False,
        overlap=0.25,
        segment=None,
        framework=framework,
        device="cpu",
    )
    return (run / "metrics.json").read_bytes()


def _rows(table):
    """(step, value) of each line, without the time of day."""
    head, *lines = (line.split("\t") for line in table.read_text().splitlines())
    return [[cell for name, cell in zip(head, line, strict=True) if name != "timestamp"] for line in lines]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("stopped") / "run"


@pytest.fixture
def stopped(micro, kept, tmp_path, stopping):
    """A run that stopped in its tenth step, with its last and previous checkpoints at 8 and 4; a copy for each test."""
    if not kept.exists():
        with stopping(Trainer, 10):
            train(micro, kept)
        assert [checkpoints.read(kept / name).step for name in (LAST, PREVIOUS)] == [8, 4]
    return shutil.copytree(kept, tmp_path / "run")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_is_passed_over_with_a_sentence(micro, stopped, capsys):
    cut(stopped / LAST)
    train(micro, stopped)
    said = " ".join(capsys.readouterr().err.split())
    assert "last.safetensors: not a whole safetensors file" in said
    assert "going on from previous.safetensors, step 4" in said
    assert "resuming" in said
    assert [checkpoints.read(stopped / name).step for name in (LAST, PREVIOUS)] == [12, 8]


def test_where_none_is_whole_the_run_is_left_alone_unless_asked(micro, stopped):
    cut(stopped / LAST)
    cut(stopped / PREVIOUS)
    with pytest.raises(
        InputError, match=r"last\.safetensors: not a whole .*, or give --overwrite to begin this run anew"
    ):
        train(micro, stopped)
    assert (stopped / LAST).exists()
    train(micro, stopped, RunOptions(overwrite=True))
    assert checkpoints.read(stopped / LAST).step == 12


@pytest.mark.parametrize("moment", ["written", "moved"])
def test_a_kill_between_two_renames_loses_nothing(stopped, moment):
    """The new checkpoint is whole before the last one moves, and the newest whole one is found wherever it is."""
    whole = checkpoints.read(stopped / LAST)
    if moment == "moved":
        (stopped / LAST).replace(stopped / NEXT)
    else:
        (stopped / LAST).replace(stopped / NEXT)
        (stopped / PREVIOUS).replace(stopped / LAST)
    found = run_dir.newest_checkpoint(stopped, pytest.fail)
    assert difference(found, whole) == []


def test_a_run_of_other_code_or_data_is_begun_anew_by_the_pipeline_alone(micro, stopped, capsys):
    small = RunOptions(overwrite=True, basis="other code")
    assert run_dir.find_resumable(micro, stopped, overwrite=True, basis="", say=pytest.fail).step == 8
    train(micro, stopped, small)
    assert "unfinished run of other code or data; beginning anew" in " ".join(capsys.readouterr().err.split())
    assert checkpoints.read(stopped / LAST).provenance["basis"] == "other code"


def test_a_run_killed_before_its_record_writes_it(micro, stopped):
    train(micro, stopped)
    assert (stopped / RECORD).exists()
    # The record is written before the last checkpoint: a kill between the two leaves a run to go on with.
    (stopped / LAST).unlink()
    assert run_dir.find_resumable(micro, stopped, overwrite=False, basis="", say=pytest.fail).step == 8


def test_overwriting_begins_when_all_is_there_for_it(micro, stopped):
    """A finished run is not given up for one that cannot begin."""
    train(micro, stopped)
    written = (stopped / LAST).read_bytes()
    with pytest.raises(InputError, match="'abacus' cannot be used here"):
        train(micro, stopped, RunOptions(device="abacus", overwrite=True))
    assert (stopped / LAST).read_bytes() == written
    assert (stopped / RECORD).exists()


def test_want_of_memory_is_one_sentence(micro, stopped, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried")

    before = (stopped / LAST).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", fail)
        with pytest.raises(OutOfMemoryError, match=r"step 9: memory ran out; the last good checkpoint is .*batch_size"):
            train(micro, stopped)
    assert (stopped / LAST).read_bytes() == before


def test_a_module_that_draws_draws_the_same_after_a_resume(micro):
    """None here does; one that a user adds may, from PyTorch's own generator."""
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


def test_step_of_an_empty_folder_is_none(tmp_path):
    assert step_of(tmp_path) == 0
