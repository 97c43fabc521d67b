"""Stage ``realism``: tabulate what still tells made songs from real ones.

For each kind of song: levels, widths and bands of voice and instrumental, and by how much the peer improves on the
mixture. The real excerpt is one song of six seconds, so that only large distances mean something.
"""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pandas as pd

from ablations.release import proof, settings
from ablations.release.scan import write_table
from ablations.stages import run_stage
from twinsep.data.dataset import Track, tracks
from twinsep.data.recordings.generate import kind_of
from twinsep.data.synth.effects import active_rms

TABLE = settings.RELEASED / "realism"
#: Edges of the bands in Hz.
EDGES = (60, 250, 1000, 4000, 10_000, 16_000, 20_000)
_SILENT = 1e-6


def main() -> None:
    """Write the table, medians over the songs of the splits ``test`` and ``real``."""
    songs = [song for split in ("test", "real") for song in tracks(settings.SONGS, split)]
    rows = pd.DataFrame([measure(song) for song in songs])
    rows["peer above mixture, dB"] = rows.track.map(peer_gain(json.loads(proof.SCORES.read_text())))
    kinds = {kind: heading for kind, (heading, *_) in proof.KINDS.items()}
    grouped = rows.drop(columns="track").groupby("kind").median().round(1)
    order = [kind for kind in kinds if kind in grouped.index]
    table = grouped.loc[order].rename(index=kinds).rename_axis("songs").reset_index()
    write_table(table, TABLE)


def measure(song: Track) -> dict[str, float | str]:
    """Levels in dB of a song: voice over instrumental, mid over side and bands of each; NaN for what is silent."""
    found: dict[str, float | str] = {"track": song.name, "kind": kind_of(song.name)}
    stems = {"voice": song.read("vocals"), "instrumental": song.read("instrumental")}
    levels = {name: active_rms(x.T) if np.abs(x).max() > _SILENT else np.nan for name, x in stems.items()}
    found["voice over instrumental, dB"] = decibels(levels["voice"] ** 2 / levels["instrumental"] ** 2)
    for name, x in stems.items():
        found[f"{name}: mid over side, dB"] = mid_over_side(x)
        for label, level in zip(band_labels(), bands(x, song.sample_rate), strict=True):
            found[f"{name}: {label}, dB"] = level
    return found


def mid_over_side(x: np.ndarray) -> float:
    """Energy of (L + R)/2 over that of (L − R)/2, in dB, of a stem (2, S)."""
    mid, side = (np.sum(np.square(y, dtype=np.float64)) for y in ((x[0] + x[1]) / 2, (x[0] - x[1]) / 2))
    return decibels((mid + 1e-9) / (side + 1e-9)) if mid + side > _SILENT else np.nan


def bands(x: np.ndarray, sample_rate: int) -> list[float]:
    """Energy of each band over that of the whole stem (2, S), in dB."""
    power = np.square(np.abs(np.fft.rfft(x.astype(np.float64), axis=-1))).sum(0)
    hertz = np.linspace(0, sample_rate / 2, len(power))
    total = power.sum()
    if total < _SILENT:
        return [np.nan] * (len(EDGES) - 1)
    parts = [power[(hertz >= low) & (hertz < high)].sum() for low, high in pairwise(EDGES)]
    return [decibels((part + 1e-12) / total) for part in parts]


def band_labels() -> list[str]:
    """Names of the bands."""
    return [f"{low / 1000:g}–{high / 1000:g} kHz" for low, high in pairwise(EDGES)]


def peer_gain(scores: dict[str, list[proof.Record]]) -> dict[str, float]:
    """Improvement of the peer over the mixture by song, in dB of uSDR of the instrumental; undefined ones left out."""
    usdr = {
        system: {
            record["track"]: record["value"]
            for record in scores[system]
            if (record["target"], record["metric"]) == ("instrumental", "usdr") and record["value"] is not None
        }
        for system in ("spleeter", "mixture")
    }
    shared = usdr["spleeter"].keys() & usdr["mixture"].keys()
    mixed = (track for track in shared if kind_of(track) in (*proof.MIXED, proof.REAL))
    return {track: usdr["spleeter"][track] - usdr["mixture"][track] for track in mixed}


def decibels(ratio: float) -> float:
    """A ratio of energies in dB."""
    return float(10 * np.log10(ratio))


if __name__ == "__main__":
    run_stage(main)
