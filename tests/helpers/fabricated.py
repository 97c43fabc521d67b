"""Results in the formats that the paper reads, made up from ``rows.yaml`` and ``params.yaml``."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from twinsep.config import preset

ROOT = Path(__file__).parents[2]
GENERATED = "results/data/generated"
FLOORS = {"mixture": 4.0, "fixed gain per band": 6.5, "level regression": 7.5, "weighted regression": 8.0}
CEILING = {"ideal ratio mask": 15.0}
#: Verdict -> difference, low, high, p and seeds needed of a row that gets it.
VERDICTS = {
    "better": (0.7, 0.4, 1.0, 0.001, np.nan),
    "worse": (-0.6, -0.9, -0.3, 0.002, np.nan),
    "equivalent": (-0.004, -0.12, 0.11, 0.9, np.nan),
    "undecided": (0.2, -0.2, 0.6, 0.4, 9.0),
    "not trained": (-2.1, -2.5, -1.7, 0.0, np.nan),
}
DEVICE = {"device": "cpu, 2 cores, AMD EPYC", "commit": "0123456789ab"}
VERSIONS = {"torch": "2.13.0+cpu", "jax": "0.10.2"}
DEFAULT_SCORE = 8.25
_LOSSES = {
    "default": 6.1, "reference-mix": 4.1, "magnitude": 4.6, "band alone": 4.0, "si-sdr": 5.8, "compressed": 6.2,
    "no-si-sdr": 5.9, "least squares": 6.5,
}  # fmt: skip


def write_results(root: Path, profile: str = "cpu", data: str = GENERATED) -> Path:
    """Make the paper's sources and made-up results of ``profile``, with every verdict, below ``root``."""
    for folder in ("paper", "twinsep/bands"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("*.pdf", "__pycache__"))
    for name in ("rows.yaml", "params.yaml"):
        (root / "ablations").mkdir(exist_ok=True)
        shutil.copy(ROOT / "ablations" / name, root / "ablations")
    params = yaml.safe_load((ROOT / "ablations/params.yaml").read_text())
    params |= {"profile": profile, "data": params["data"] | {"root": data}}
    (root / "ablations/params.yaml").write_text(yaml.safe_dump(params))
    chosen = params["profiles"][profile]
    groups, definitions = _groups(chosen)
    tables = root / "results" / "tables"
    tables.mkdir(parents=True)
    grid = yaml.safe_load((ROOT / "ablations/rows.yaml").read_text())
    for axis in grid["axes"]:
        _axis_table(axis, groups, definitions).to_csv(tables / f"{axis}.csv", index=False, float_format="%.4f")
    real = data == GENERATED
    _base_table(real).to_csv(tables / "base.csv", index=False, float_format="%.4f")
    lines = [
        {"loss": name, "mean gain": 0.8, "valid uSDR": s + 0.4, "test uSDR": s, "apart": 0.1}
        for name, s in _LOSSES.items()
    ]
    pd.DataFrame(lines).to_csv(tables / "static_optimum.csv", index=False)
    _write_runs(root / "results", groups, definitions, params)
    _write_json(root / "results/noise.json", _noise(groups))
    _write_json(root / "results/parity.json", _parity())
    _write_json(root / "results/cost.json", DEVICE)
    figures = root / "results" / "figures"
    figures.mkdir()
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="500" height="150"><rect width="500" height="150"/></svg>'
    for name in re.findall(r'#drawing\("(\w+)"', (ROOT / "paper/paper.typ").read_text()):
        (figures / f"{name}.svg").write_text(svg)
    return root


def _groups(profile):
    """Group -> seeds of the profile, and row -> its entry in rows.yaml."""
    found, definitions = {}, {}
    for name, entry in yaml.safe_load((ROOT / "ablations/rows.yaml").read_text())["groups"].items():
        row = name.split("-", 1)[1]
        if "question" in entry:
            definitions[row] = entry
        if row in profile.get("only", [row]) and row not in profile.get("without", ()):
            found[name] = entry["seeds"][: profile.get("seeds", len(entry["seeds"]))]
    return found, definitions


def _axes(row, definitions):
    axes = definitions[row]["axis"]
    return [axes] if isinstance(axes, str) else axes


def _axis_table(axis, groups, definitions):
    lines = [{"row": name, "uSDR mean": score} for name, score in FLOORS.items()]
    names = [n for n in groups if {"all", axis} & set(_axes(n.split("-", 1)[1], definitions))]
    for place, name in enumerate(names):
        framework, row = name.split("-", 1)
        line = {"row": row, "framework": framework, "seeds": len(groups[name]), "parameters": 301_044}
        line |= {
            "uSDR mean": DEFAULT_SCORE,
            "cSDR median": 8.1,
            "SI-SDR mean": 7.9,
            "leakage mean": -20.0,
            "sd songs": 1.9,
            "sd seeds": 0.08,
            "at equal time": 8.0,
        }
        if "all" not in _axes(row, definitions):
            verdict = list(VERDICTS)[place % len(VERDICTS)]
            difference, low, high, p, needed = VERDICTS[verdict]
            needed = np.inf if verdict == "undecided" and place > len(VERDICTS) else needed
            line |= {"difference": difference, "low": low, "high": high, "p": p, "verdict": verdict}
            line |= {"seeds needed": needed, "uSDR mean": DEFAULT_SCORE + difference, "at equal time": 7.9}
        if axis in ("size", "mixer") and framework == "torch":
            line |= {"GFLOP / s": 0.82, "step s": 0.132, "MiB": 787.0}
        lines.append(line)
    lines += [{"row": name, "uSDR mean": score} for name, score in CEILING.items()]
    columns = [
        "row",
        "framework",
        "seeds",
        "parameters",
        "uSDR mean",
        "cSDR median",
        "SI-SDR mean",
        "leakage mean",
        "sd songs",
        "sd seeds",
        "GFLOP / s",
        "step s",
        "MiB",
    ]
    columns += ["at equal time", "difference", "low", "high", "p", "verdict", "seeds needed"]
    table = pd.DataFrame(lines).reindex(columns=columns)
    return table.astype({"parameters": "Int64", "seeds": "Int64"})


def _base_table(real):
    rows = {**FLOORS, "base": 9.5, **CEILING}
    lines = []
    for row, score in rows.items():
        line = {"row": row, "framework": "torch" if row == "base" else None, "seeds": 1 if row == "base" else None}
        line |= {"uSDR mean": score, "cSDR median": score - 0.2, "SI-SDR mean": score - 0.4, "leakage mean": -22.0}
        lines.append(line | ({"real uSDR": score + 1} if real else {}))
    return pd.DataFrame(lines).astype({"seeds": "Int64"})


def _write_runs(results, groups, definitions, params):
    """records.json, scores.csv and curves.csv."""
    profile, records, curves, scores = params["profiles"][params["profile"]], {}, [], []
    usual = preset(profile["preset"]).override(
        {"training": profile["training"], "data": {"root": params["data"]["root"]}}
    )
    for name, seeds in groups.items():
        framework, row = name.split("-", 1)
        rows = {} if _axes(row, definitions) == ["base"] else profile["rows"]
        config = usual.override({"training": rows}).override(definitions[row]["override"]).to_dict()
        records[name] = {
            str(seed): {
                "parameters": 301_044,
                "seconds": 180.0,
                "versions": VERSIONS,
                "configuration": config,
                **DEVICE,
            }
            for seed in seeds
        }
        run = {"group": name, "framework": framework, "row": row}
        for seed in seeds:
            for step in (1, 2, 3):
                curves.append(
                    run | {"seed": seed, "step": step, "seconds": step / 5, "validation uSDR": 4.0 + 2 * step}
                )
            for song in range(3):
                scores.append(
                    run | {"seed": seed, "split": "test", "track": f"song {song}", "metric": "usdr", "value": 8.0}
                )
    _write_json(results / "records.json", records)
    pd.DataFrame(curves).to_csv(results / "curves.csv", index=False)
    pd.DataFrame(scores).to_csv(results / "scores.csv", index=False)


#: The effects of the crossed layout, as the stage ``noise`` names them.
EFFECTS = (
    "framework",
    "seed",
    "song",
    "framework × seed",
    "framework × song",
    "seed × song",
    "framework × seed × song",
)


def _noise(groups):
    both = {"torch-default", "jax-default"} <= set(groups)
    effects = {name: {"variance": 0.01, "sd": 0.1, "estimate": 0.01, "mean square": 0.02, "df": 3} for name in EFFECTS}
    effects["song"] |= {"variance": 3.6, "sd": 1.9}
    twins = {"difference": "jax - torch", "seeds": 4, "songs": 60, "mean": 0.01, "low": -0.05, "high": 0.07}
    starts = ("plain", "level-features", "identity-start", "plain-compressed", "level-features-compressed")
    complete = {f"torch-{row}" for row in (*starts, "identity-start-compressed", "compressed")} <= set(groups)
    repairs = {"level features": 0.5, "the identity start": 0.3, "the compressed loss": -0.4}
    effects_of_repairs = {
        name: {"mean": x, "low": x - 0.1, "high": x + 0.1, "seeds": 2, "single effects": [x - 0.3, x, x, x + 0.3]}
        for name, x in repairs.items()
    }
    needed = {e: {"in this grid": n, "two rows alone": None if n > 20 else n + 1} for e, n in (("0.2", 30), ("0.5", 3))}
    layout = {"frameworks": ["torch", "jax"], "seeds": [0, 1, 2, 3], "songs": 60, "effects": effects}
    comparisons = {
        "rows": 40, "sd over seeds": 0.15, "sd over seeds, 95 % interval": [0.12, 0.19], "sd over songs": 0.6,
        "Cochran": {"framework": "torch", "row": "lstm", "share": 0.2, "p": 0.3}, "seeds needed": needed,
    }  # fmt: skip
    processor = {
        "difference": "there - here", "seeds": 4, "mean": 0.07, "low": -0.11, "high": 0.25, "verdict": "undecided",
        "here": {"processor": "cpu", "commit": "0123456789ab"},
        "there": {"processor": "another", "commit": "abcdefabcdef"},
    }  # fmt: skip
    return {
        "components": layout if both else None,
        "frameworks": {**twins, "verdict": "equivalent"} if both else None,
        "comparisons": comparisons if both and len(groups["jax-default"]) > 1 else None,
        "main effects": effects_of_repairs if complete else None,
        "processor": processor if both else {"difference": None, "left out": "the runs kept had another configuration"},
    }  # fmt: skip


def _parity():
    by_type = {
        dtype: {key: 1e-9 for key in ("forward", "backward", "gradients", "gradients, loud")}
        for dtype in ("float64", "float32")
    }
    steps = {dtype: {"parameters": 1e-9} for dtype in ("float64", "float32")}
    parts = {"one": by_type, "two": by_type}
    return {
        "modules": parts, "networks": parts, "networks, JAX's own operations": parts, "steps": steps,
        "levels": {"gradients": 0.01, "gradients, loud": 0.1}, "song": {"snr_db": 132.9},
    }  # fmt: skip


def _write_json(path, content):
    path.write_text(json.dumps(content))
