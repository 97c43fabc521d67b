"""The scan for voices: levels by second, and the runs that songs may use."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.signal
import soundfile

from twinsep import Separator
from twinsep.config import preset
from twinsep.data.recordings import scan
from twinsep.separation.overlap_add import ChunkGrid

RATE = 44_100
LIMITS = scan.Thresholds(free_db=-22, sung_db=-11, shortest_free=3, shortest_sung=2, margin=1)


def test_levels_do_not_depend_on_the_pieces_of_the_stream():
    rng = np.random.default_rng(0)
    song = rng.standard_normal((2, 3500))
    vocals = 0.1 * song
    edges = [0, 1, 700, 1999, 2000, 3500]
    pieces = [(song[:, a:b], vocals[:, a:b]) for a, b in pairwise(edges)]
    whole = scan.levels_by_second([(song, vocals)], 1000)
    assert len(whole) == 3  # the last half second does not count
    assert whole == pytest.approx(-20, abs=0.01)
    assert np.allclose(scan.levels_by_second(pieces, 1000), whole)
    assert scan.levels_by_second([(song[:, :10], vocals[:, :10])], 1000).shape == (0,)


def test_silence_is_free_of_voice():
    silence = np.zeros((2, 2000))
    assert (scan.levels_by_second([(silence, silence)], 1000) < LIMITS.free_db).all()


def test_runs_lose_a_margin_inside_the_song_only():
    levels = np.array([-40] * 4 + [-5] * 3 + [-40] * 2 + [-15] + [-40] * 5, float)
    assert scan.free_runs(levels, LIMITS) == [(0, 3), (11, 15)]
    assert scan.sung_runs(levels, LIMITS) == [(4, 7)]
    assert scan.runs(np.array([True, True, False, True])) == [(0, 2), (3, 4)]
    assert scan.free_runs(np.full(2, -40.0), LIMITS) == []
    assert scan.minutes({"a": [(0, 30), (40, 70)], "b": []}) == 1.0


def test_a_file_is_scanned_at_its_own_rate(tmp_path):
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.standard_normal((2 * 48_000 + 100, 2))
    sound = scipy.signal.lfilter([1], [1, -0.95], noise, axis=0)  # little above the 22.05 kHz of the model
    soundfile.write(tmp_path / "song.wav", sound, 48_000)
    half = Separator(lambda x: 0.5 * x[:, None], preset("tiny"), ChunkGrid(RATE))
    levels = scan.voice_levels(tmp_path / "song.wav", half)
    assert levels == pytest.approx([-6.02, -6.02], abs=0.1)


def test_levels_are_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "_detector", lambda: None)
    monkeypatch.setattr(scan, "voice_levels", lambda *_: np.array([-12.3456, -40.0]))
    scan.scan_song(scan.Job(tmp_path / "song.wav", tmp_path / "deep" / "song.wav.json"))
    assert scan.read_levels(tmp_path / "deep" / "song.wav.json").tolist() == [-12.35, -40.0]
