"""The comparison of systems: its runs differ in the model alone, and its tables show what was scored."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ablations import settings
from ablations.systems import cost, input_length, rows, tabulate
from twinsep.config import SOURCES
from twinsep.errors import InputError

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "ablations" / "systems" / "dvc.yaml"


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
    assert set(by_budget) == {"steps", "time", "stems"}
    for made in by_budget.values():
        assert all(one == made[0] for one in made)


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
def scored(tmp_path, monkeypatch):
    """Fabricated scores of every run: the instrumental of system i scores 9 + i dB, give or take song and seed."""
    monkeypatch.chdir(tmp_path)
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
        stems = (*SOURCES, "instrumental") if group.budget == "stems" else ("instrumental", "vocals")
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
    stems = pd.read_csv("results/tables/systems_stems.csv").set_index("system")
    assert stems.loc["bsrnn-tiny", "uSDR drums"] == pytest.approx(11.02, abs=0.01)
    assert "Not comparable" in Path("results/tables/published.md").read_text()
    assert "2 medleys of 3 test songs" in Path("results/tables/input_length.md").read_text()
    for name in ("systems", "systems_stems", "input_length", "published"):
        assert all(Path(f"results/tables/{name}.{end}").stat().st_size for end in ("csv", "md", "tex"))
