"""The noise study: variance components, the twins on the same seeds, the other processor, seeds for a difference."""

import json
from unittest.mock import ANY

import numpy as np
import pandas as pd
import pytest
from helpers.fabricated import EFFECTS
from scipy import stats

from ablations import scores, second_processor, settings
from ablations.stages import collect, noise
from twinsep.errors import InputError

SONGS = 30


def row(axis, *, framework="torch", seeds=(0, 1)):
    return {"framework": framework, "seeds": list(seeds), "axis": axis, "question": "Is it?", "override": {}}


GROUPS = {
    "torch-base": {**row("base", seeds=[0]), "override": {"training": {"steps": 2000}}},
    "torch-default": row("all", seeds=[0, 1, 2, 3]),
    "jax-default": {"framework": "jax", "seeds": [0, 1, 2, 3]},
    **{f"torch-row{i}": row("loss") for i in range(12)},
}


def simulated(rng, groups, *, shared=0.0, own=0.1, songs=2.0, rest=0.1, jax=0.0, over_songs=0.0):
    """Scores by group: ``shared`` is what a seed does to all rows of both frameworks, ``own`` what it does to a run.

    The effects of seeds and songs have exactly the standard deviations ``shared`` and ``songs``.
    """
    seeds = shared * np.array([[-1.5], [-0.5], [0.5], [1.5]]) / np.sqrt(5 / 3)
    song = rng.standard_normal((1, SONGS))
    song *= songs / song.std(ddof=1)
    return {
        name: 8
        + jax * entry.get("framework").startswith("jax")
        + seeds[: len(entry["seeds"])]
        + song
        + over_songs * rng.standard_normal((1, SONGS))
        + own * rng.standard_normal((len(entry["seeds"]), 1))
        + rest * rng.standard_normal((len(entry["seeds"]), SONGS))
        for name, entry in groups.items()
    }


def kept_runs(apart=0.0, groups=("torch-default",)):
    """A record of ``groups`` on another processor, whose scores lie ``apart`` dB from those here."""
    judged = scores.read().query("split == 'test' and metric == 'usdr'")
    judged = judged[judged["group"].isin(groups)]
    runs = {}
    for (group, seed), of_run in judged.groupby(["group", "seed"]):
        configuration = json.loads(settings.run_path(group, seed).read_text())["configuration"]
        runs.setdefault(group, {})[str(seed)] = {
            "configuration": second_processor.configuration_digest(configuration),
            "uSDR": dict(zip(of_run["track"], of_run["value"] + apart, strict=True)),
        }
    return {"processor": "another", "commit": "abcdefabcdef", "runs": runs}


@pytest.fixture
def study(finish):
    """A function that finishes a grid and returns its noise study."""

    def run(groups=GROUPS, *, seed=0, second=None, **sizes):
        found = simulated(np.random.default_rng(seed), groups, **sizes)
        finish(groups, found)
        second_processor.OUT.write_text(json.dumps(second or kept_runs()))
        noise.main()
        return json.loads(noise.OUT.read_text())

    return run


def test_components_name_what_varies(study):
    found = study(shared=1.0, own=0.2, songs=3.0, rest=0.05)["components"]
    assert (found["frameworks"], found["seeds"], found["songs"]) == (["torch", "jax"], [0, 1, 2, 3], SONGS)
    effects = found["effects"]
    assert set(effects) == set(EFFECTS)
    sd = {name: effect["sd"] for name, effect in effects.items()}
    assert sd["song"] == pytest.approx(3, rel=0.02)
    assert sd["seed"] == pytest.approx(1, rel=0.2)
    assert 0.1 < sd["framework × seed"] < 0.4
    assert sd["framework × seed × song"] == pytest.approx(0.05, rel=0.3)
    assert sd["seed × song"] < 0.03
    assert all(
        effect["sd"] == pytest.approx(max(effect["estimate"], 0) ** 0.5, rel=1e-4) for effect in effects.values()
    )


def test_the_twins_are_compared_on_the_same_seeds(study):
    # What a seed does to both twins cancels.
    found = study(shared=1.0, own=0.03)["frameworks"]
    assert (found["seeds"], found["songs"], found["verdict"]) == (4, SONGS, "equivalent")
    assert found["low"] < found["mean"] < found["high"] < 0.3
    assert found["90 % interval"][0] > found["low"]


def test_twins_that_differ_are_told_apart(study):
    found = study(own=0.05, jax=-0.5)["frameworks"]
    assert (found["verdict"], found["seeds needed"]) == ("worse", None)
    assert found["mean"] == pytest.approx(-0.5, abs=0.15)


def test_an_undecided_comparison_of_the_twins_needs_seeds(study):
    found = study(own=0.3, jax=0.15)["frameworks"]
    assert found["verdict"] == "undecided"
    assert found["seeds needed"] > 4


def test_the_noise_of_a_comparison_and_the_seeds_it_asks_for(study):
    found = study(own=0.2, rest=0.1, over_songs=0.0)["comparisons"]
    assert (found["rows"], found["songs"], found["df"]) == (14, SONGS, 12)  # 13 rows in PyTorch
    low, high = found["sd over seeds, 95 % interval"]
    assert low < np.sqrt(2) * 0.2 < high
    assert low < found["sd over seeds"] < high
    needed = found["seeds needed"]
    assert list(needed) == ["0.1", "0.2", "0.3", "0.5", "1"]
    for kind in ("in this grid", "two rows alone"):
        numbers = [needed[effect][kind] for effect in needed]
        assert numbers == sorted(numbers, reverse=True)
    assert all(n["two rows alone"] >= n["in this grid"] for n in needed.values())
    # (1.96 + 0.84)² σ² / δ² as a lower bound.
    assert 2.8**2 * found["sd over seeds"] ** 2 / 0.2**2 < needed["0.2"]["in this grid"] + 1


def test_differences_between_songs_limit_what_seeds_can_show(study):
    found = study(over_songs=1.0)["comparisons"]
    assert found["sd over songs"] == pytest.approx(np.sqrt(2), rel=0.2)
    assert found["seeds needed"]["0.1"] == {"in this grid": None, "two rows alone": None}


def test_a_row_is_not_compared_with_itself(study):
    two = {name: GROUPS[name] for name in ("torch-base", "torch-default", "torch-row0")}
    found = study(two, over_songs=1.0)["comparisons"]["sd over songs"]
    table = scores.read()
    row, default = (scores.runs(table, name, *scores.JUDGED).scores[:2] for name in ("torch-row0", "torch-default"))
    assert found == pytest.approx((row - default).mean(0).std(ddof=1), rel=0.02)


#: Rows of the start → effects of features, start, and both in addition; and the compressed loss.
STARTS = {
    "plain": {"model": {"features": "complex", "init": "default"}},
    "level-features": {"model": {"features": "complex+level", "init": "default"}},
    "identity-start": {"model": {"features": "complex", "init": "identity"}},
}


@pytest.fixture
def starts():
    """The eight rows of the start, and a loss that is none of them; (groups, scores without noise)."""
    compressed = {"loss": {"weights": {"compressed": 1.0}}}
    groups = {"torch-base": GROUPS["torch-base"], "torch-default": GROUPS["torch-default"]}
    for name, override in STARTS.items():
        groups[f"torch-{name}"] = {**row("start"), "override": override}
        groups[f"torch-{name}-compressed"] = {**row("start"), "override": {**override, **compressed}}
    groups["torch-compressed"] = {**row("start"), "override": compressed}
    groups["torch-other"] = {**row("loss"), "override": {"loss": {"weights": {"compressed": 1.0, "si_sdr": 2.5}}}}
    found = simulated(np.random.default_rng(0), groups, own=0.0, rest=0.0)
    for name, scored in found.items():
        start = name.removeprefix("torch-").removesuffix("-compressed")
        level, identity = (start in ("default", "compressed", own) for own in ("level-features", "identity-start"))
        scored += 0.9 * level + 0.3 * identity + 0.5 * (level and identity) - 0.4 * name.endswith("compressed")
    found["torch-default"][2:] += 5  # seeds that the other rows lack
    found["torch-other"] += 3
    return groups, found


def test_main_effects_are_means_of_paired_differences(starts, finish):
    groups, found = starts
    finish(groups, found)
    second_processor.OUT.write_text(json.dumps(kept_runs()))
    noise.main()
    effects = json.loads(noise.OUT.read_text())["main effects"]
    assert {name: effect["mean"] for name, effect in effects.items()} == pytest.approx(
        {"level features": 1.15, "the identity start": 0.55, "the compressed loss": -0.4}, abs=1e-5
    )
    assert effects["level features"]["single effects"] == pytest.approx([0.9, 0.9, 1.4, 1.4], abs=1e-5)
    assert {effect["seeds"] for effect in effects.values()} == {2}


def test_main_effects_have_the_noise_of_a_mean_of_four(starts, finish):
    groups, found = starts
    rng = np.random.default_rng(1)
    finish(groups, {name: scored + 0.2 * rng.standard_normal((len(scored), 1)) for name, scored in found.items()})
    second_processor.OUT.write_text(json.dumps(kept_runs()))
    noise.main()
    study = json.loads(noise.OUT.read_text())
    for effect in study["main effects"].values():
        half = (effect["high"] - effect["low"]) / 2
        t = stats.t.ppf(0.975, study["comparisons"]["df"])
        assert half == pytest.approx(t * study["comparisons"]["sd over seeds"] / np.sqrt(2 * 4), rel=0.05)


def test_without_one_of_the_eight_rows_there_are_no_main_effects(starts, finish):
    groups, found = starts
    del groups["torch-level-features-compressed"], found["torch-level-features-compressed"]
    finish(groups, found)
    second_processor.OUT.write_text(json.dumps(kept_runs()))
    noise.main()
    assert json.loads(noise.OUT.read_text())["main effects"] is None


def test_a_row_of_another_spread_is_named(finish):
    found = simulated(np.random.default_rng(0), GROUPS)
    found["torch-row3"][0] += 3
    finish(GROUPS, found)
    second_processor.OUT.write_text(json.dumps(kept_runs()))
    noise.main()
    test = json.loads(noise.OUT.read_text())["comparisons"]["Cochran"]
    assert test["row"] == "row3"
    assert test["p"] < 0.01


@pytest.fixture
def processor(finish):
    """A function that compares the runs of a finished grid with those kept from another processor."""
    finish(GROUPS, simulated(np.random.default_rng(0), GROUPS))

    def run(kept):
        second_processor.OUT.write_text(json.dumps(kept))
        noise.main()
        return json.loads(noise.OUT.read_text())["processor"]

    return run


def test_the_runs_of_another_processor_are_compared_by_seed_and_song(processor):
    kept = kept_runs(apart=0.5)
    for run, change in zip(kept["runs"]["torch-default"].values(), (0.1, -0.1, 0.1, -0.1), strict=True):
        run["uSDR"].update({track: value + change for track, value in run["uSDR"].items()})
    found = processor(kept)
    assert (found["difference"], found["seeds"], found["songs"]) == ("there - here", 4, SONGS)
    assert (found["mean"], found["verdict"]) == (pytest.approx(0.5, abs=1e-6), "better")
    spread = np.std([0.1, -0.1, 0.1, -0.1], ddof=1) / 2
    assert found["high"] - found["mean"] == pytest.approx(stats.t.ppf(0.975, 3) * spread, rel=0.01)
    assert found["there"] == {"processor": "another", "commit": "abcdefabcdef"}
    assert found["here"]["commit"] == "0123456789ab"
    assert found["all rows"] is None


@pytest.mark.parametrize("change", ["configuration", "songs", "seeds", "group"])
def test_runs_of_another_processor_that_cannot_be_compared_are_left_out(processor, change):
    kept = kept_runs()
    of_group = kept["runs"]["torch-default"]
    for seed, run in [*of_group.items()]:
        if change == "configuration":
            run["configuration"] = "0" * 16
        elif change == "songs":
            run["uSDR"]["another"] = run["uSDR"].pop("0")
        elif change == "seeds" and seed != "0":
            del of_group[seed]
    if change == "group":
        kept["runs"]["torch-another"] = kept["runs"].pop("torch-default")
    found = processor(kept)
    assert found["difference"] is None
    assert found["left out"].startswith("the runs kept from another (commit abcdefabcdef) have another configuration")


def test_means_and_verdicts_of_all_rows_are_compared_with_another_processor(processor):
    kept = kept_runs(groups=tuple(GROUPS))
    assert processor(kept)["all rows"] == {
        "groups": len(GROUPS),
        "runs": sum(len(entry["seeds"]) for entry in GROUPS.values()),
        "mean": pytest.approx(0, abs=1e-12),
        "rms": pytest.approx(0, abs=1e-12),
        "largest": {"group": ANY, "difference": pytest.approx(0, abs=1e-12)},
        "Spearman": pytest.approx(1),
        "verdicts": len(GROUPS) - 3,
        "other verdicts": [],
    }
    for run in kept["runs"]["torch-row3"].values():
        run["uSDR"] = {track: value + 3 for track, value in run["uSDR"].items()}
    for run in kept["runs"]["torch-row5"].values():
        run["uSDR"] = dict.fromkeys(run["uSDR"], 0)
    found = processor(kept)["all rows"]
    untrained = next(one for one in found["other verdicts"] if one["group"] == "torch-row5")
    better = next(one for one in found["other verdicts"] if one["group"] == "torch-row3")
    assert (better["there"], untrained["there"]) == ("better", "not trained")
    assert found["largest"]["group"] == "torch-row5"
    assert found["largest"]["difference"] < -3
    assert found["Spearman"] < 1
    kept["runs"]["torch-row3"].pop("0")
    assert processor(kept)["all rows"] is None


def test_the_runs_of_a_checkout_are_kept(finish, tmp_path, monkeypatch):
    finish(GROUPS, simulated(np.random.default_rng(0), GROUPS))
    wanted = kept_runs(groups=tuple(GROUPS))["runs"]
    elsewhere = settings.run_path("torch-row3", 1)
    elsewhere.write_text(json.dumps({**json.loads(elsewhere.read_text()), "commit": "committed"}))
    (tmp_path / "here/results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    second_processor.main("..", "another")
    found = json.loads(second_processor.OUT.read_text())
    assert {key: found[key] for key in ("processor", "commit", "device")} == {
        "processor": "another",
        "commit": "0123456789ab",
        "device": "cpu, 2 cores",
    }
    assert set(found["runs"]) == set(GROUPS) - {"torch-row3"}
    for group, of_group in found["runs"].items():
        for seed, run in of_group.items():
            assert run["configuration"] == wanted[group][seed]["configuration"]
            assert run["uSDR"] == pytest.approx(wanted[group][seed]["uSDR"], abs=1e-4)
    default = tmp_path / settings.run_path("torch-default", 2)
    default.write_text(json.dumps({**json.loads(default.read_text()), "commit": "another"}))
    with pytest.raises(InputError, match="has runs of torch-default of several commits"):
        second_processor.main("..", "another")
    (tmp_path / settings.scores_path("torch-default", 2)).unlink()
    with pytest.raises(InputError, match="no scored run of torch-default with the seed 2"):
        second_processor.main("..", "another")


def test_what_a_profile_cannot_show_is_null(study):
    one = {name: {**entry, "seeds": [0]} for name, entry in GROUPS.items() if not name.startswith("jax")}
    found = study(one)
    assert found["frameworks"] is None
    assert found["comparisons"] is None
    assert found["components"] is None


def test_one_framework_gives_the_components_of_seeds_and_songs(study):
    found = study({name: entry for name, entry in GROUPS.items() if not name.startswith("jax")})
    assert set(found["components"]["effects"]) == {"seed", "song", "seed × song"}
    assert found["frameworks"] is None


def test_rows_that_did_not_train_are_no_part_of_the_noise(study):
    found = simulated(np.random.default_rng(0), GROUPS)
    assert study()["comparisons"]["rows"] == 14
    table = pd.read_csv(scores.PATH)
    table.loc[table["group"] == "torch-row0", "value"] -= 6
    table.to_csv(scores.PATH, index=False)
    noise.main()
    assert json.loads(noise.OUT.read_text())["comparisons"]["rows"] == 13
    assert found["torch-row0"].mean() > 4


def test_the_record_states_its_origin(study):
    found = study()
    assert {"commit", "device", "versions", "time"} <= set(found)
    assert json.loads(collect.RECORDS.read_text())["torch-base"]["0"]["commit"] == "0123456789ab"
