"""Stage ``proof``: score the released weights beside floors, a peer and a ceiling, on songs used for no choice.

The songs are the split ``test`` of the made songs, from tracks and speakers held out of training, and the real excerpt.
Systems: the mixture, one fixed gain per band, the difference of the channels, the peer, the released weights, the ideal
ratio mask. Songs with voice and without stems have no scores: there the peer measures how much voice is left.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from ablations.release import settings
from ablations.release.scan import write_table
from ablations.stages import run_stage
from twinsep.config import Config
from twinsep.data.dataset import Track, tracks
from twinsep.data.recordings.generate import REAL, kind_of
from twinsep.data.recordings.material import read_material, read_stereo
from twinsep.data.recordings.scan import DETECTOR
from twinsep.evaluation.evaluate import Record, score_songs, summarise
from twinsep.evaluation.systems import System, baseline_system, model_system
from twinsep.separation.separator import Separator, load
from twinsep.utils.files import write_json
from twinsep.utils.progress import progress_bar

SCORES, SUMMARY, RESIDUAL = (settings.RELEASED / f"{name}.json" for name in ("scores", "summary", "residual_voice"))
TABLE, BY_LOUDNESS, BY_GENRE = (settings.RELEASED / name for name in ("proof", "proof_by_loudness", "proof_by_genre"))
OURS = "twinsep"
#: What a kind of song is called, and the score that counts for it: (heading, stem, metric).
KINDS = {
    REAL: ("the real excerpt", "instrumental", "usdr"),
    "singer": ("real singers over real instrumentals", "instrumental", "usdr"),
    "sung": ("sung speech over real instrumentals", "instrumental", "usdr"),
    "spoken": ("speech over real instrumentals", "instrumental", "usdr"),
    "espeak": ("synthetic voices over real instrumentals", "instrumental", "usdr"),
    "generated": ("generated songs", "instrumental", "usdr"),
    "instrumental": ("instrumentals without voice", "instrumental", "usdr"),
    "voice": ("voice alone: what is left", "instrumental", "leakage"),
}
#: The kinds whose voice has a level over the instrumental.
MIXED = ("singer", "sung", "spoken", "espeak", "generated")
_FLOOR = 1e-9


def main() -> None:
    """Write every score, the summary of ours, the tables, and the residual voice of sung songs."""
    proof = settings.recipe()["proof"]
    ours, peer = load(settings.WEIGHTS), load(DETECTOR)
    records: dict[str, list[Record]] = {}
    for name, make in systems(ours, peer).items():
        with progress_bar(name) as report:
            scored = score_songs(make(), ours.config.model, str(settings.SONGS), ["test", "real"], report=report)
        records[name] = [record for record in scored if record["target"] in ("instrumental", "vocals")]
    write_json(SCORES, records)
    write_json(SUMMARY, summarise(records[OURS]))
    songs = pd.DataFrame(describe(song) for split in ("test", "real") for song in tracks(settings.SONGS, split))
    scores = counted(records).merge(songs, on="track")
    write_table(by_kind(scores), TABLE)
    write_table(by_loudness(scores, proof["loudness_db"]), BY_LOUDNESS)
    write_table(by_genre(scores), BY_GENRE)
    write_json(RESIDUAL, residual_voice(ours, peer, proof["passages"], proof["passage_seconds"]))


def systems(ours: Separator, peer: Separator) -> dict[str, Callable[[], System]]:
    """The systems by name, each made when it is its turn."""
    config: Config = ours.config
    root = str(settings.SONGS)
    return {
        "mixture": lambda: baseline_system("mixture", config.model, root),
        "fixed gain": lambda: baseline_system("band_gain", config.model, root),
        "L−R": lambda: side_system,
        "spleeter": lambda: model_system(peer.model, peer.config.model, peer.grid),
        OURS: lambda: model_system(ours.model, config.model, ours.grid),
        "ideal mask": lambda: baseline_system("ideal_mask", config.model, root),
    }


def side_system(_: Track, mixture: np.ndarray) -> dict[str, np.ndarray]:
    """Estimate the instrumental (2, S) by removing what both channels share: each channel minus the mean of both."""
    return {"instrumental": mixture - mixture.mean(0, keepdims=True)}


def describe(song: Track) -> dict[str, Any]:
    """Return a song's kind, level of the voice in dB (NaN without one) and genre, for the tables."""
    info = json.loads((song.folder / "song.json").read_text())
    return {
        "track": song.name,
        "kind": kind_of(song.name),
        "voice_db": info.get("voice_db", math.nan),
        "genre": info.get("genre", ""),
    }


def counted(records: dict[str, list[Record]]) -> pd.DataFrame:
    """The scores that count: a row (system, track, score) for each system and song."""
    rows = []
    for system, scored in records.items():
        for record in scored:
            _, stem, metric = KINDS[kind_of(record["track"])]
            if (record["target"], record["metric"]) == (stem, metric):
                value = math.nan if record["value"] is None else record["value"]
                rows.append({"system": system, "track": record["track"], "score": value})
    return pd.DataFrame(rows)


def by_kind(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each kind of song: its number of songs, and the mean and median score of each system in dB."""
    rows = []
    for kind, (heading, _, metric) in KINDS.items():
        own = scores[scores.kind == kind]
        if own.empty:
            continue
        unit = "leakage" if metric == "leakage" else "uSDR"
        for statistic in ("mean", "median"):
            values = own.groupby("system", sort=False).score.agg(statistic)
            rows.append({"songs": heading, "n": own.track.nunique(), "score": f"{unit}, {statistic}", **_round(values)})
    return pd.DataFrame(rows)


def by_loudness(scores: pd.DataFrame, edges: list[float]) -> pd.DataFrame:
    """A row for each range of the level of the voice: the mean score of each system on songs with a voice in dB."""
    own = scores[scores.kind.isin(MIXED) & scores.voice_db.notna()]
    limits = [-math.inf, *edges, math.inf]
    labels = [
        f"below {edges[0]}",
        *(f"{a} to {b}" for a, b in pairwise(edges)),
        f"above {edges[-1]}",
    ]
    groups = pd.cut(own.voice_db, limits, labels=labels)
    return _grouped(own, groups.astype(str), [label for label in labels if (groups == label).any()], "voice, dB")


def by_genre(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each genre and for with and without voice: the mean score of each system in dB."""
    own = scores[scores.kind.isin((*MIXED, "instrumental")) & (scores.genre != "")]
    voice = np.where(own.kind == "instrumental", ", no voice", "")
    groups = own.genre + voice
    return _grouped(own, groups, sorted(groups.unique()), "genre")


def _grouped(own: pd.DataFrame, groups: pd.Series, order: Iterable[str], heading: str) -> pd.DataFrame:
    rows = []
    for label in order:
        part = own[groups == label]
        values = part.groupby("system", sort=False).score.mean()
        rows.append({heading: label, "n": part.track.nunique(), **_round(values)})
    return pd.DataFrame(rows)


def _round(values: pd.Series) -> dict[str, float]:
    return {str(name): round(float(value), 2) for name, value in values.items()}


# ---------------------------------------------------------------------------- songs without stems


def residual_voice(ours: Separator, peer: Separator, passages: int, seconds: float) -> dict[str, Any]:
    """How much voice the peer finds in our instrumental of sung songs, in dB below what it finds in the songs.

    At most ``passages`` songs count, each with the middle of its longest sung run, up to ``seconds``.
    """
    material = read_material(settings.MATERIAL, settings.RECORDINGS, "test")
    found = {}
    for each in material.sung[:passages]:
        start, end = max(each.runs, key=lambda run: run[1] - run[0])
        length = min(seconds, end - start)
        song = read_stereo(material.root / each.path, (start + end - length) / 2, length).T
        without = ours(song, ours.sample_rate)["instrumental"]
        before, after = (_voice_energy(peer, x) for x in (song, without))
        found[each.path] = round(10 * math.log10((after + _FLOOR) / (before + _FLOOR)), 2)
    values = [*found.values()]
    return {"songs": found, "median_db": round(float(np.median(values)), 2) if values else None}


def _voice_energy(peer: Separator, song: np.ndarray) -> float:
    return float(np.square(peer(song, peer.sample_rate)["vocals"], dtype=np.float64).sum())


if __name__ == "__main__":
    run_stage(main)
