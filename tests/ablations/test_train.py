"""Stage ``train``: the runs of a group, what it keeps of them, and what an interrupted group resumes."""

import json

import pandas as pd
import pytest

from ablations import cluster, settings
from ablations.stages import inventory, train
from twinsep import checkpoints
from twinsep.errors import InputError, TwinsepError
from twinsep.utils.cluster import Outcome
from twinsep.utils.files import write_json

GROUP = "torch-conv"


@pytest.fixture
def folder(micro, tmp_path, monkeypatch, no_pictures):  # noqa: ARG001
    """A working folder in which the group is configured with two runs of four steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(settings.ROOT))
    configs = {str(seed): micro.override({"training": {"seed": seed}}).to_dict() for seed in (0, 1)}
    write_json(settings.configs_path(GROUP), configs)
    write_json(inventory.OUT, {})


@pytest.mark.usefixtures("folder")
def test_a_group_leaves_record_curves_and_last_weights_of_each_run(capsys, monkeypatch):
    """One run was trained on a cluster before; tests/separation/test_cluster.py has a cluster, here runs take turns."""

    def in_turns(function, runs, **_):
        return (Outcome(run, function(run)) if run.seed == 1 else Outcome(run, None, died) for run in runs)

    died = TwinsepError("its worker died")
    monkeypatch.setattr(cluster.cluster, "run", in_turns)
    with pytest.raises(TwinsepError, match=r"^1 of 2 runs failed: torch-conv, seed 0: its worker died"):
        cluster.main([GROUP])
    with pytest.raises(InputError, match="no group 'torch-nothing' in this profile"):
        cluster.main(["torch-nothing"])
    capsys.readouterr()
    finished = (train.WORK / GROUP / "1" / "final.safetensors").read_bytes()
    (train.WORK / GROUP / "1" / "best.safetensors").unlink()  # as a mark: a run that starts anew writes it again
    train.main(GROUP)
    said = capsys.readouterr().err
    assert "torch-conv, seed 0: step 4 of 4" in said
    assert "torch-conv, seed 1: step" not in said  # kept, not trained again
    assert settings.weights_path(GROUP, 1).read_bytes() == finished
    assert not (train.WORK / GROUP).exists()
    for seed in (0, 1):
        assert checkpoints.read(settings.weights_path(GROUP, seed)).step == 4
        record = json.loads(settings.run_path(GROUP, seed).read_text())
        assert record["configuration"]["training"]["seed"] == seed
        assert record["basis"] == train.basis("torch")
        curves = pd.read_csv(settings.curves_path(GROUP, seed))
        assert list(curves) == ["step", "seconds", "training loss", "validation uSDR", "validation SI-SDR"]
        assert list(curves["step"]) == [2, 4]
        assert curves["seconds"].is_monotonic_increasing
    assert settings.weights_path(GROUP, 0).read_bytes() != finished


@pytest.mark.usefixtures("folder")
def test_a_finished_run_is_kept_only_with_the_same_configuration_code_and_songs(micro):
    train.train(GROUP, 0)
    run, made_with = train.WORK / GROUP / "0", train.basis("torch")
    assert train.is_finished(run, micro.hash, made_with)
    assert not train.is_finished(run, micro.override({"training": {"seed": 7}}).hash, made_with)
    assert not train.is_finished(run, micro.hash, "other code")
    (run / "run.json").unlink()
    assert not train.is_finished(run, micro.hash, made_with)


@pytest.mark.usefixtures("folder")
def test_runs_of_other_code_than_at_the_start_are_not_kept_as_results(monkeypatch):
    """The code is edited while the first of more runs than cores trains: the second is of the new code."""
    monkeypatch.setattr(train.side_by_side, "run_modules", lambda *_, **__: None)
    monkeypatch.setattr(train, "basis", lambda _: "old")
    monkeypatch.setattr(train, "is_finished", lambda folder, _, made_with: (folder.name, made_with) == ("0", "old"))
    with pytest.raises(TwinsepError, match=r"^code or songs changed while torch-conv trained"):
        train.main(GROUP)
    assert not settings.run_path(GROUP, 0).exists()


@pytest.mark.parametrize(("key", "rows"), [("only", ["base", "default"]), ("without", ["lstm", "conv"])])
@pytest.mark.usefixtures("folder")
def test_a_row_that_the_profile_leaves_out_has_empty_folders(key, rows, monkeypatch):
    monkeypatch.setitem(settings.profile(), key, rows)
    old = settings.run_path(GROUP, 0)
    write_json(old, {})
    train.main(GROUP)
    for kept in (old.parents[1], settings.weights_path(GROUP, 0).parent):
        assert kept.is_dir()
        assert not list(kept.iterdir())


@pytest.mark.parametrize("key", ["only", "without"])
def test_a_profile_that_names_an_unknown_row_is_refused(key, monkeypatch):
    monkeypatch.setitem(settings.profile(), key, ["base", "convolution"])
    with pytest.raises(InputError, match=r"profile cpu names the row 'convolution', which rows.yaml lacks"):
        settings.profile()
