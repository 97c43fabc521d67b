"""Songs made of recordings: deterministic, resumable, exact sums, splits without shared tracks or speakers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from helpers.recordings import RATE, write_recordings

# ruff: noqa: E402 (the imports need the data extra)
for package in ("espeakng_loader", "midirenderer", "pyworld"):
    pytest.importorskip(package)

from twinsep.data import dataset
from twinsep.data.recordings import generate, material
from twinsep.data.recordings.catalogue import read_catalogue, recordings
from twinsep.data.recordings.generate import Sources, make_dataset
from twinsep.data.recordings.material import draw_passage, draw_phrases, read_material, write_material
from twinsep.data.recordings.song import Recipe, make_song
from twinsep.data.synth import real_excerpt
from twinsep.data.synth.effects import active_rms
from twinsep.errors import InputError

PLAIN = Recipe(
    seconds=3.0,
    voice_db=(-5, -5),
    side_db=(0, 0),
    spread=0,
    spread_db=(-12, -3),
    low_pass=0,
    low_pass_hz=(8000, 20_000),
    codec=0,
    master=0,
    pause=0,
    a_cappella=0,
    passage_seconds=(1, 1),
)
COUNTS = {"train": {"spoken": 2, "instrumental": 1}, "valid": {"spoken": 1}, "test": {"singer": 1, "voice": 1}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Fabricated recordings; all instrumentals are free of voice, the album's song is sung."""
    root = tmp_path_factory.mktemp("made") / "recordings"
    write_recordings(root)
    found = list(recordings(read_catalogue(root.with_suffix(".yaml")), root))
    free = {each.path: [(0, 8)] for each in found if each.package == "band"}
    out = root.parent / "material.json"
    write_material(out, found, free, {"album/music/song.ogg": [(1, 6)]})
    return Sources(out, root)


def of(sources, split):
    return read_material(sources.material, sources.recordings, split)


@pytest.fixture(scope="module")
def made(sources, tmp_path_factory):
    root = tmp_path_factory.mktemp("songs")
    make_dataset(root, songs=COUNTS, recipe=PLAIN, seed=0, sources=sources, workers=1, progress=False)
    return root


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def rms(x):
    return np.sqrt(np.mean(np.square(x, dtype=float)))


def test_material_of_the_splits_shares_no_track_and_no_speaker(sources):
    parts = [of(sources, split) for split in ("train", "valid", "test")]
    for kind in (
        lambda p: {each.path for each in (*p.instrumentals, *p.sung)},
        lambda p: {*p.voices, *p.singers},
    ):
        names = [kind(part) for part in parts]
        assert all(names)
        assert sum(map(len, names)) == len(set.union(*names))
    assert [each.path for each in parts[2].sung] == ["album/music/song.ogg"]
    assert set(parts[2].singers) == {"solo/singer_1"}
    with pytest.raises(InputError, match="holds no material for real songs"):
        of(sources, "real")


def test_a_speaker_of_few_files_speaks_in_no_song(sources, tmp_path):
    found = [each for each in recordings(read_catalogue(sources.recordings.with_suffix(".yaml")), sources.recordings)]
    few = [each for each in found if not (each.speaker == "talk/ann" and each.path.endswith(("4.wav", "5.wav")))]
    write_material(tmp_path / "few.json", few, {}, {})
    assert read_material(tmp_path / "few.json", sources.recordings, "train").voices == {}
    with pytest.raises(InputError, match="hold no voice"):
        make_song("voice", (0,), read_material(tmp_path / "few.json", sources.recordings, "train"), PLAIN)


def test_passages_lie_in_the_runs_without_voice(sources):
    some = of(sources, "train")
    narrow = replace(some, instrumentals=tuple(replace(each, runs=((2, 6),)) for each in some.instrumentals))
    for seed in range(10):
        sound, each, start = draw_passage(np.random.default_rng(seed), narrow, 3.0)
        assert len(sound) == 3 * RATE
        assert 2 <= start <= 3
        assert each in narrow.instrumentals
    with pytest.raises(InputError, match="free of voice for 5 s"):
        draw_passage(np.random.default_rng(0), narrow, 5.0)


def test_phrases_are_of_one_speaker_and_equally_loud(sources):
    files = of(sources, "train").voices["talk/ann"]
    phrases = draw_phrases(np.random.default_rng(0), sources.recordings, files, 3.0)
    assert 3.0 <= sum(len(x) for _, x in phrases) / RATE < 6
    assert {name for names, _ in phrases for name in names} <= set(files)
    assert len({name for names, _ in phrases for name in names}) == sum(len(names) for names, _ in phrases)


def test_a_song_is_the_same_again_and_another_for_another_seed(sources):
    some = of(sources, "train")
    for kind in ("sung", "spoken"):
        first, again, other = (make_song(kind, (0, 0, n), some, PLAIN) for n in (0, 0, 1))
        assert np.array_equal(first.vocals, again.vocals)
        assert first.info == again.info
        assert not np.array_equal(first.vocals, other.vocals)


def test_the_voice_has_the_level_asked_for(sources):
    song = make_song("sung", (1,), of(sources, "train"), PLAIN)
    levels = [active_rms(x.astype(np.float32)) for x in (song.vocals, song.instrumental)]
    assert 20 * np.log10(levels[0] / levels[1]) == pytest.approx(-5, abs=0.1)
    assert song.info["voice_db"] == -5


@pytest.mark.parametrize(
    ("kind", "silent"), [("instrumental", "vocals"), ("voice", "instrumental"), ("generated", None), ("espeak", None)]
)
def test_other_kinds_have_what_they_are_named_after(sources, kind, silent):
    song = make_song(kind, (0,), of(sources, "train"), PLAIN)
    for name in ("vocals", "instrumental"):
        stem = getattr(song, name)
        assert stem.dtype == np.int16
        assert stem.shape == (3 * RATE, 2)
        assert (rms(stem) == 0) == (name == silent)
    assert np.abs(song.vocals.astype(int) + song.instrumental).max() < 0.97 * 32_768


def test_every_treatment_is_recorded_and_keeps_the_sum_below_full_scale(sources):
    everything = replace(PLAIN, spread=1, low_pass=1, codec=1, master=1, pause=1, a_cappella=1, side_db=(-8, 8))
    song = make_song("spoken", (3,), of(sources, "train"), everything)
    assert np.abs(song.vocals.astype(int) + song.instrumental).max() < 0.97 * 32_768
    for stem, name in (("vocals", "pause"), ("instrumental", "a_cappella")):
        assert {"side_db", "spread_db", "low_pass_hz", "codec"} == set(song.info["production"][stem])
        first, last = (round(seconds * RATE) for seconds in song.info[name])
        assert last - first == pytest.approx(RATE, abs=RATE // 50)
        assert not getattr(song, stem)[first + 500 : last - 500].any()
    assert song.info["mastered"]


def test_the_set_is_read_as_songs_in_two_stems(made):
    for split, kinds in COUNTS.items():
        names = [song.name for song in dataset.tracks(made, split)]
        assert sorted(names) == sorted(f"{kind}-{split}-{n:04d}" for kind, count in kinds.items() for n in range(count))
    (real,) = dataset.tracks(made, "real")
    assert real.name == real_excerpt.TRACK
    for song in (*dataset.tracks(made, "train"), real):
        parts = [
            soundfile.read(song.folder / f"{stem}.flac", dtype="float32")[0].T for stem in ("vocals", "instrumental")
        ]
        assert np.allclose(song.read("mixture"), sum(parts), atol=1e-7)
        assert np.array_equal(song.read("vocals"), parts[0])
    assert [generate.kind_of(name) for name in ("spoken-train-0001", real.name)] == ["spoken", "real"]
    record = json.loads((made / "dataset.json").read_text())
    assert set(record["songs"]) == {path.name for folder in ("train", "test") for path in (made / folder).iterdir()}


def test_a_second_call_makes_only_what_is_missing(sources, tmp_path, monkeypatch):
    small = {"songs": {"train": {"instrumental": 2}}, "recipe": PLAIN, "sources": sources, "workers": 1}
    make_dataset(tmp_path, **small, seed=0, progress=False)
    before = tree(tmp_path)
    for file in (gone := tmp_path / "train" / "instrumental-train-0001").iterdir():
        file.unlink()
    gone.rmdir()
    (tmp_path / ".partial-instrumental-train-0001").mkdir()
    made, song = [], make_song
    monkeypatch.setattr(generate, "make_song", lambda kind, seed, *rest: made.append(seed) or song(kind, seed, *rest))
    make_dataset(tmp_path, **small, seed=0, progress=False)
    assert made == [(0, 0, 1)]
    assert tree(tmp_path) == before
    make_dataset(tmp_path, **small, seed=0, progress=False)
    assert len(made) == 1
    make_dataset(tmp_path, **small, seed=1, progress=False)
    assert made[1:] == [(1, 0, 0), (1, 0, 1)]


def test_a_failure_leaves_finished_songs_and_no_table(sources, tmp_path, monkeypatch):
    def fail(kind, seed, *rest):
        if seed[-1]:
            raise InputError("no")
        return make_song(kind, seed, *rest)

    monkeypatch.setattr(generate, "make_song", fail)
    small = {"songs": {"train": {"instrumental": 2}}, "recipe": PLAIN, "sources": sources, "workers": 1}
    with pytest.raises(InputError, match=r"^no$"):
        make_dataset(tmp_path, **small, seed=0, progress=False)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["instrumental-train-0000"]
    assert not (tmp_path / "splits.csv").exists()


def test_the_number_of_workers_does_not_change_a_byte(made, sources, tmp_path):
    make_dataset(tmp_path, songs=COUNTS, recipe=PLAIN, seed=0, sources=sources, workers=2, progress=False)
    assert tree(tmp_path) == tree(made)


def test_wrong_requests_are_refused_and_write_nothing(sources, tmp_path):
    def make(root=tmp_path / "new", songs=COUNTS, sources=sources):
        make_dataset(root, songs=songs, recipe=PLAIN, seed=0, sources=sources, workers=1, progress=False)

    other = tmp_path / "other"
    (other / "train").mkdir(parents=True)
    for arguments, sentence in (
        ({"songs": {"real": {"sung": 1}}}, "unknown split 'real'"),
        ({"songs": {"train": {"hummed": 1}}}, "unknown kind of song 'hummed'"),
        ({"songs": {"train": {"sung": -1}}}, "between 0 and 9999"),
        ({"sources": replace(sources, material=tmp_path / "none.json")}, "scan the recordings first"),
        ({"root": other}, "holds other data"),
    ):
        with pytest.raises(InputError, match=sentence):
            make(**arguments)
    assert not (tmp_path / "new").exists()


def test_a_silent_instrumental_is_refused(tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros((4 * RATE, 2)), RATE)
    empty = material.Material(tmp_path, (material.Passages("silent.wav", "rock", ((0, 4),)),))
    with pytest.raises(InputError, match=r"nearly silent, the last one in silent\.wav"):
        draw_passage(np.random.default_rng(0), empty, 3.0)
