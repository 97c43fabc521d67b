"""The comparison of systems: its runs differ in the model alone, and its tables show what was scored."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from ablations import settings
from ablations.systems import cost, input_length, rows, tabulate, tune
from twinsep.config import SOURCES
from twinsep.errors import InputError
from twinsep.losses import LOSSES

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "ablations" / "systems" / "dvc.yaml"


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """Learning rates and times of a step by system, as the stage `tune` writes them: a step of `flat` takes twice as
    long as that of `tiny`."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(rows.table()["systems"]):
        rows.tuning_path(name).parent.mkdir(parents=True, exist_ok=True)
        found = {"learning_rate": 0.001 * (i + 1), "seconds_per_step": 0.2 if name == "flat" else 0.1}
        rows.tuning_path(name).write_text(json.dumps(found))


@pytest.mark.usefixtures("tuned")
@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_runs_of_a_budget_differ_in_the_model_and_the_learning_rate_alone(profile, monkeypatch):
    monkeypatch.setitem(settings.params(), "profile", profile)
    by_budget = {}
    for group in rows.groups().values():
        first, second = (rows.configuration(group, seed).to_dict() for seed in (0, 1))
        assert first.pop("training") | {"seed": 1} == second.pop("training")
        assert first == second
        made = rows.configuration(group, 0).to_dict()
        for key in ("steps", "validate_every") if group.budget == "time" else ():
            del made["training"][key]
        del made["training"]["learning_rate"], made["model"]
        by_budget.setdefault(group.budget, []).append(made)
    assert set(by_budget) == {"steps", "time", "stems", "stems-clipped"}
    for made in by_budget.values():
        assert all(one == made[0] for one in made)


def test_the_loss_of_four_stems_has_a_gradient_below_0_db():
    """In every term: a stem starts far below 0 dB, where the clipped SI-SDR of the default loss has none."""
    config = rows.untrained("tiny", "stems")
    target = torch.randn(1, 1, 2, 44_100, generator=torch.Generator().manual_seed(0))
    for name in config.loss.weights:
        estimate = (0.1 * target + torch.randn_like(target)).requires_grad_()
        LOSSES[name](estimate, target, mixture=target, config=config).backward()
        assert estimate.grad.abs().max() > 0, name


@pytest.mark.usefixtures("tuned")
def test_rate_and_equal_time_are_those_that_were_found():
    training = {name: rows.configuration(rows.groups()[name], 0).training for name in ("flat-steps", "flat-time")}
    assert [found.learning_rate for found in training.values()] == [0.002, 0.002]
    assert [found.steps for found in training.values()] == [1200, 600]
    rows.tuning_path("flat").unlink()
    with pytest.raises(InputError, match="tune@flat"):
        rows.configuration(rows.groups()["flat-steps"], 0)


def test_the_rate_with_the_best_validation_songs_is_chosen(tmp_path, monkeypatch):
    """The last averaged weights decide; a step's time leaves out the validation, of 9 s here."""
    monkeypatch.chdir(tmp_path)
    scores = dict(zip(rows.table()["tuning"]["learning_rates"], (7.0, 9.5, 9.0, 3.0), strict=True))

    def curve(run):
        lines = {"step": [10, 20, 30, 40], "seconds": [2.0, 3.0, 4.0, 14.0], "training loss": 1.0}
        return pd.DataFrame({**lines, "validation uSDR": [None, None, None, scores[float(run.name)]]})

    monkeypatch.setattr(tune, "curves", curve)
    monkeypatch.setattr(tune.side_by_side, "run_modules", lambda *_, **__: tune.folder("flat", 0).mkdir(parents=True))
    tune.main("flat")
    found = rows.tuned("flat")
    assert (found["learning_rate"], found["seconds_per_step"], found["steps"]) == (0.003, 0.1, 600)
    assert {one["learning_rate"]: one["valid_usdr"] for one in found["rates"]} == scores
    assert not (rows.WORK / "tuning" / "flat").exists()


def test_the_table_of_systems_refuses_names_that_do_not_fit(monkeypatch):
    for entry, sentence in (
        ({"tiny-steps": {"system": "tiny", "budget": "hours"}}, "needs a system of 'systems' and a budget"),
        ({"small-steps": {"system": "tiny", "budget": "steps"}}, "'small-steps' must be named tiny-steps"),
    ):
        monkeypatch.setitem(rows.table(), "groups", entry)
        with pytest.raises(InputError, match=sentence):
            rows.groups()


def test_every_file_of_the_pipeline_exists_and_every_group_has_its_system():
    stages = yaml.safe_load(PIPELINE.read_text())["stages"]
    for stage in stages.values():
        body = stage.get("do", stage)
        assert body["wdir"] == "../.."
        listed = [path for path in body["deps"] if not path.startswith("results/")]
        assert [path for path in listed if not (ROOT / path).exists()] == []
    assert set(yaml.safe_load(rows.TABLE.read_text())["groups"]) == set(rows.groups())


def test_the_code_of_a_stage_in_another_file_is_found():
    assert "torch_impl" in settings.code_dependencies("ablations/systems/dvc.yaml:train", "torch")
    found = settings.stage_inputs("ablations/systems/dvc.yaml:train@tiny-steps")
    assert "ablations/systems/train.py" in found
    assert found["ablations/systems/systems.yaml:seeds"] == "[0, 1]"


@pytest.fixture
def scored(tuned):  # noqa: ARG001
    """Fabricated scores of every run: the instrumental of system i scores 9 + i dB, give or take song and seed."""
    systems = list(rows.table()["systems"])

    def write(folder, level, stems, record):
        lines = [
            {"split": split, "track": f"{split}{song}", "target": stem, "metric": metric, "value": level + 0.01 * song}
            for split, songs in (("test", 5), ("real", 1))
            for song in range(songs)
            for stem in stems
            for metric in ("usdr", "csdr", "leakage", "bleedless", "fullness")
        ]
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(lines))
        (folder / "run.json").write_text(json.dumps(record))

    for group in rows.groups().values():
        stems = (*SOURCES, "instrumental") if "stems" in group.budget else ("instrumental", "vocals")
        for seed in rows.seeds():
            config = rows.configuration(group, seed).to_dict()
            record = {
                "parameters": 1000,
                "seconds": 120,
                "device": "a machine",
                "commit": "abc",
                "configuration": config,
            }
            level = 9 + systems.index(group.system) + 0.001 * seed
            write(rows.scores_folder(group.name, seed), level, stems, record)
            rows.training_folder(group.name, seed).mkdir(parents=True)
            (rows.training_folder(group.name, seed) / "run.json").write_text(json.dumps(record))
    for name in rows.table()["pretrained"]:
        write(rows.scores_folder(name, 0), 11, ("instrumental", "vocals"), {})
    for i, name in enumerate(settings.params()["baselines"]):
        write(settings.RUNS / f"baseline-{name}", 7.5 + i, ("instrumental", "vocals"), {})
    one = {"parameters": 1000, "mac_per_audio_second": 2e8, "real_time_factor": 0.01, "peak_memory_mib": 300.0}
    cost.OUT.parent.mkdir(parents=True, exist_ok=True)
    cost.OUT.write_text(json.dumps({"systems": dict.fromkeys([*systems, *rows.table()["pretrained"]], one)}))
    means = [{"group": "torch-default", "seconds": 4, "uSDR": 9.0, "cSDR": 9.0, "leakage": -20.0}]
    input_length.OUT.write_text(
        json.dumps(
            {"means": means, "medleys": 2, "songs_per_medley": 3, "seeds": 2, "device": "a machine", "commit": "abc"}
        )
    )


@pytest.mark.usefixtures("scored")
def test_the_tables_show_scores_costs_and_verdicts():
    tabulate.main()
    table = pd.read_csv("results/tables/systems.csv")
    after_steps = table[table["budget"] == "equal steps"].set_index("system")
    assert after_steps.loc["flat", "uSDR"] == pytest.approx(10.02, abs=0.01)
    assert after_steps.loc["flat", "difference"] == pytest.approx(1)
    assert after_steps.loc["flat", "verdict"] == "better"
    assert pd.isna(after_steps.loc["tiny", "difference"])
    # The floor is the level regression, at 9.5 dB.
    assert after_steps.loc["tiny", "verdict"] == "not trained"
    assert after_steps.loc["flat", "GMAC / s"] == 0.2
    assert set(table.loc[table["budget"] == "equal time", "system"]) == set(after_steps.index) - {"tiny"}
    assert table.iloc[0]["system"] == "mixture"
    assert table.iloc[-1]["system"] == "ideal ratio mask"
    stems = pd.read_csv("results/tables/systems_stems.csv").set_index(["system", "SI-SDR"])
    assert stems.loc[("bsrnn-tiny", "not clipped"), "uSDR drums"] == pytest.approx(11.02, abs=0.01)
    assert [key for key in stems.index if key[1] == "clipped"] == [("tiny", "clipped")]
    assert "Not comparable" in Path("results/tables/published.md").read_text()
    assert "2 medleys of 3 test songs" in Path("results/tables/input_length.md").read_text()
    for name in ("systems", "systems_stems", "input_length", "published"):
        assert all(Path(f"results/tables/{name}.{end}").stat().st_size for end in ("csv", "md", "tex"))


def test_operations_of_a_network_that_asks_for_values_are_counted(micro, monkeypatch):
    class Network(torch.nn.Module):
        def forward(self, x):
            assert x.abs().amax(0).nonzero().shape[0] == x.shape[1] * x.shape[2]
            return x @ torch.ones(x.shape[-1], 3)

    monkeypatch.setattr(cost, "build", lambda _: Network())
    monkeypatch.setattr(cost, "initialise", lambda *_: None)
    seconds = micro.training.segment_seconds
    assert cost._multiply_adds(micro) * seconds == pytest.approx(2 * micro.segment_samples * 3)
