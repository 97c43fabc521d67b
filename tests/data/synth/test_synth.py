"""Generated songs: reproducible to the bit, with exact sums, and written completely or not at all."""

import csv
import errno
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

# ruff: noqa: E402 (the imports need the data extra)
for package in ("espeakng_loader", "midirenderer", "pyworld"):
    pytest.importorskip(package)

from twinsep.config import SOURCES
from twinsep.data.synth import generate, real_excerpt, vocoder
from twinsep.data.synth.analysis import COEFFICIENTS
from twinsep.data.synth.composition import Note, compose
from twinsep.data.synth.effects import SAMPLE_RATE, active, active_rms, brickwall
from twinsep.data.synth.espeak import speak
from twinsep.data.synth.instruments import Bend, play
from twinsep.data.synth.song import song
from twinsep.errors import InputError

SMALL = {"songs": {"train": 2, "valid": 1, "test": 1}, "seconds": 2.5, "seed": 3, "workers": 1, "progress": False}


def digest(made):
    return hashlib.sha256(b"".join(made.stems[s].tobytes() for s in SOURCES) + made.mixture.tobytes()).hexdigest()


def tree(root: Path):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def songs():
    return [song(seed, 8.0) for seed in range(6)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    generate.generate_dataset(root, **SMALL)
    return root


def test_songs_have_the_documented_shapes_and_peak_and_sum_exactly(songs):
    for made in songs:
        assert set(made.stems) == set(SOURCES)
        for stem in (*made.stems.values(), made.mixture):
            assert stem.shape == (8 * SAMPLE_RATE, 2)
            assert stem.dtype == np.int16
            assert 0 < np.abs(stem.astype(int)).max() < 0.97 * 32768
        assert np.array_equal(sum(s.astype(np.int32) for s in made.stems.values()), made.mixture)


def test_the_voice_pauses_and_is_balanced_with_the_accompaniment(songs):
    shares, levels = [], []
    for made in songs:
        vocals = made.stems["vocals"] / 32768
        rest = made.mixture / 32768 - vocals
        shares.append(active(vocals).mean())
        levels.append(20 * np.log10(active_rms(vocals) / active_rms(rest)))
        quiet = ~active(vocals)
        assert quiet.mean() > 0.1
    assert 0.5 < np.mean(shares) < 0.8
    assert all(-9.5 < level < -2 for level in levels), levels


def test_a_seed_gives_the_same_song_in_another_process_and_order():
    code = (
        "import sys; sys.path.insert(0, 'tests/data/synth')\n"
        "from test_synth import digest\n"
        "from twinsep.data.synth.song import song\n"
        "song(8, 2.5); print(digest(song(7, 2.5)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    first = digest(song(7, 2.5))
    song(9, 2.5)
    assert digest(song(7, 2.5)) == first == other.stdout.strip()
    assert digest(song(8, 2.5)) != first


def test_speech_does_not_depend_on_earlier_utterances():
    first = speak("la mama sasa", "de+m1").samples
    speak("oh my heart", "en-us+f4")
    assert np.array_equal(speak("la mama sasa", "de+m1").samples, first)
    with pytest.raises(InputError, match="no voice"):
        speak("la", "xx+nobody")


def test_no_two_songs_share_a_seed():
    seeds = [generate.song_seed(s, split, i) for s in range(3) for split in generate.SPLITS for i in range(50)]
    assert len(set(seeds)) == len(seeds)


def test_the_form_leaves_room_for_instruments():
    for seed in range(40):
        plan = compose(np.random.default_rng(seed), 12.0)
        assert set(plan.sections) >= {"v", "b", "c"}
        assert len(plan.sections) * 2 * plan.beat >= 12.0
        sung = sum(s.beats for s in plan.slots) / 2
        assert 0.6 <= sung / len(plan.sections) <= 0.85


def test_notes_are_bent_and_panned():
    notes = [Note(0.1, 1.5, 69, 110)]
    plain = play(notes, 80, SAMPLE_RATE, position=-1.0)
    bent = play(notes, 80, SAMPLE_RATE, position=-1.0, bend=Bend(5.0, 1.0, 0.05))
    assert np.abs(plain[:, 0]).max() > 5 * np.abs(plain[:, 1]).max()
    assert np.abs(plain - bent).max() > 0.1 * np.abs(plain).max()


def test_the_vocoder_keeps_pitch_and_level():
    frames = 200
    pitch = np.full(frames, 220.0)
    flat = np.zeros((frames, COEFFICIENTS), np.float32)
    source = vocoder.Excitation(breath=0.0, haze=0.0)
    sound = vocoder.synthesise(np.random.default_rng(0), [pitch], flat, np.zeros(frames), source)
    middle = sound[4096:-4096]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    hertz = np.arange(len(spectrum)) * SAMPLE_RATE / len(middle)
    for harmonic in (1, 2, 20):  # a pulse train: equally strong overtones, little between them
        near = np.abs(hertz - 220 * harmonic) < 60
        assert hertz[near][np.argmax(spectrum[near])] == pytest.approx(220 * harmonic, abs=2)
    assert np.mean(middle**2) == pytest.approx(1, rel=0.1)
    noise = vocoder.synthesise(np.random.default_rng(0), [0 * pitch], flat, np.zeros(frames), source)
    assert np.mean(noise[4096:-4096] ** 2) == pytest.approx(1, rel=0.1)


def test_the_brickwall_filter_removes_only_what_lies_above():
    noise = np.random.default_rng(0).standard_normal((SAMPLE_RATE, 2)).astype(np.float32)
    power = (np.abs(np.fft.rfft(brickwall(noise, 14_000), axis=0)) ** 2).mean(1)
    assert power[15_000:].max() < 1e-4 * power[:13_000].mean()


def test_the_data_set_has_the_layout_and_splits_of_musdb18(data):
    with (data / "splits.csv").open() as file:
        rows = {row["track"]: row["split"] for row in csv.DictReader(file)}
    assert sorted(rows.values()) == ["real", "test", "train", "train", "valid"]
    for track, split in rows.items():
        folder = data / ("train" if split in ("train", "valid") else "test") / track
        stems = {name: soundfile.read(folder / f"{name}.wav", dtype="int16")[0] for name in (*SOURCES, "mixture")}
        assert np.array_equal(sum(stems[s].astype(int) for s in SOURCES), stems["mixture"])
        info = soundfile.info(folder / "mixture.wav")
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 2, "PCM_16")
    record = json.loads((data / "dataset.json").read_text())
    assert set(record["songs"]) == set(rows)
    assert record["parameters"]["seconds"] == 2.5
    assert not list(data.glob(".partial*"))


def test_the_number_of_workers_does_not_change_a_byte(data, tmp_path):
    generate.generate_dataset(tmp_path / "two", **{**SMALL, "workers": 2})
    assert tree(tmp_path / "two") == tree(data)


def test_a_second_call_makes_only_what_is_missing(tmp_path, monkeypatch):
    small = {**SMALL, "songs": {"train": 2}, "real": False}
    generate.generate_dataset(tmp_path, **small)
    before = tree(tmp_path)
    gone = tmp_path / "train" / "synth-train-0001"
    for file in gone.iterdir():
        file.unlink()
    gone.rmdir()
    made = []
    monkeypatch.setattr(generate, "song", lambda seed, seconds: made.append(seed) or song(seed, seconds))
    generate.generate_dataset(tmp_path, **small)
    assert made == [generate.song_seed(3, "train", 1)]
    assert tree(tmp_path) == before
    generate.generate_dataset(tmp_path, **small)
    assert len(made) == 1
    generate.generate_dataset(tmp_path, **{**small, "songs": {"train": 1}, "seed": 4})
    assert len(made) == 2
    assert [p.name for p in (tmp_path / "train").iterdir()] == ["synth-train-0000"]


def test_a_full_disk_leaves_no_unfinished_song(tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(self, content):
        if self.name == "vocals.wav" and "0001" in str(self):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device"):
        generate.generate_dataset(tmp_path, **{**SMALL, "real": False})
    assert [p.name for p in (tmp_path / "train").iterdir()] == ["synth-train-0000"]
    assert not list(tmp_path.glob(".partial*"))
    assert not (tmp_path / "splits.csv").exists()


def test_wrong_folders_and_numbers_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="could not be written"):
        generate.generate_dataset(file, **SMALL)
    real = tmp_path / "musdb" / "train" / "synth-mine"
    real.mkdir(parents=True)
    with pytest.raises(InputError, match="holds other data"):
        generate.generate_dataset(tmp_path / "musdb", **SMALL)
    assert real.is_dir()
    for wrong in ({"songs": {"dev": 1}}, {"songs": {"train": -1}}, {"seconds": 0.5}, {"seed": -1}):
        with pytest.raises(InputError):
            generate.generate_dataset(tmp_path / "new", **{**SMALL, **wrong})
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="at least"):
        song(0, 1.0)


def test_the_real_excerpt_is_the_sum_of_its_stems(monkeypatch):
    made = real_excerpt.excerpt()
    assert made.mixture.shape == (268_288 - 2 * 2205, 2)
    assert np.array_equal(sum(s.astype(int) for s in made.stems.values()), made.mixture)
    assert np.abs(made.mixture.astype(int)).max() < 0.97 * 32768
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match="stempeg"):
        real_excerpt.excerpt()


def test_generating_songs_imports_no_framework():
    code = "import sys, twinsep.data.synth.generate; assert not {'torch', 'jax', 'pretty_midi'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
