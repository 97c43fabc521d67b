"""FLAC instead of WAV, excluded songs, and files that cannot be read."""

import os
import shutil

import numpy as np
import pytest
import soundfile
from helpers.datasets import PLAIN, RATE, make_pair, make_song

from twinsep import audio
from twinsep.config import SOURCES, preset
from twinsep.data import checks
from twinsep.data.dataset import open_track, track_folders, tracks
from twinsep.data.loader import TrainingBatches
from twinsep.data.validation import validation_segments
from twinsep.errors import InputError


@pytest.fixture
def root(tmp_path):
    """Three training songs, two validation songs and one test song."""
    lines = ["track,split"]
    songs = [("a", "train"), ("b", "train"), ("c", "train"), ("v", "valid"), ("w", "valid"), ("t", "test")]
    for seed, (name, split) in enumerate(songs):
        make_song(tmp_path / ("test" if split == "test" else "train") / name, 6_000, seed)
        lines.append(f"{name},{split}")
    (tmp_path / "splits.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def config(root):
    """Segments of 2,000 samples."""
    training = {"segment_seconds": 2_000 / RATE, "validation_seconds": 2_000 / RATE, "batch_size": 2}
    return preset("tiny").override({"data": {"root": str(root)}, "training": training})


def as_flac(path):
    sound, rate = audio.read(path)
    path.unlink()
    audio.write(path.with_suffix(".flac"), sound, rate, subtype="PCM_16")


def same(one, other):
    sounds = all(np.array_equal(one[key], other[key]) for key in ("mixture", "target"))
    return sounds and all(one[key] == other[key] for key in ("song", "index"))


# ---------------------------------------------------------------------------- FLAC


def test_flac_gives_the_same_examples(root, config):
    before = [TrainingBatches(config).example(index) for index in range(8)]
    segments = validation_segments(config)
    for name in ("a/bass", "a/mixture", "b/vocals", "c/drums", "v/vocals", "v/mixture"):
        as_flac(root / "train" / f"{name}.wav")
    make = TrainingBatches(config).example
    assert all(same(make(index), example) for index, example in enumerate(before))
    for found, expected in zip(validation_segments(config), segments, strict=True):
        assert np.array_equal(found.mixture, expected.mixture)
        assert np.array_equal(found.target, expected.target)


def test_a_stem_whose_flac_states_no_length_gives_the_same_examples(root, config):
    before = [TrainingBatches(config).example(index) for index in range(8)]
    as_flac(root / "train/a/bass.wav")
    path = root / "train/a/bass.flac"
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the upper four of 36 bits of the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert open_track(root / "train/a").frames == 6_000
    make = TrainingBatches(config).example
    assert all(same(make(index), example) for index, example in enumerate(before))
    assert checks.find_faults(root, RATE, 0.1, lambda *_: None)[0][0].findings == []


def test_a_stem_whose_recorder_crashed_is_used_and_noted(root, config):
    before = [TrainingBatches(config).example(index) for index in range(8)]
    path = root / "train/a/bass.wav"
    content = bytearray(path.read_bytes())
    content[4:8], content[40:44] = (36).to_bytes(4, "little"), bytes(4)
    path.write_bytes(content)
    make = TrainingBatches(config).example
    assert all(same(make(index), example) for index, example in enumerate(before))
    (finding,) = checks.find_faults(root, RATE, 0.1, lambda *_: None)[0][0].findings
    assert (finding.file, finding.unusable) == ("bass.wav", False)
    assert "header of the file was never finished" in finding.message


def test_pairs_may_be_flac(tmp_path):
    for song in ("train/a", "train/b"):
        make_pair(tmp_path / song)
    mixture, target = make_pair(tmp_path / "train/b")
    as_flac(tmp_path / "train/b/in.wav")
    as_flac(tmp_path / "train/b/out.wav")
    song = tracks(tmp_path, "train")[1]
    assert np.array_equal(song.read("mixture"), mixture)
    assert np.array_equal(song.read("instrumental", 100, 50), target[:, 100:150])
    assert np.array_equal(song.read("vocals"), mixture - target)


@pytest.mark.parametrize(("make", "name"), [(make_song, "bass"), (make_song, "mixture"), (make_pair, "out")])
def test_two_formats_of_a_file_are_refused_and_none_is_reported_as_wav(tmp_path, make, name):
    make(tmp_path / "song")
    as_flac(tmp_path / "song" / f"{name}.wav")
    make(tmp_path / "song")
    with pytest.raises(InputError, match=rf"{name}\.wav and {name}\.flac both exist: remove one of them"):
        open_track(tmp_path / "song")
    for suffix in ("wav", "flac"):
        (tmp_path / "song" / f"{name}.{suffix}").unlink()
    if name == "mixture":
        assert open_track(tmp_path / "song").read("mixture").any()
    else:
        with pytest.raises(InputError, match=rf"song lacks {name}\.wav: "):
            open_track(tmp_path / "song")


def test_paths_are_looked_up_once(root, monkeypatch):
    as_flac(root / "train" / "a" / "mixture.wav")
    song = open_track(root / "train" / "a")
    monkeypatch.setattr("pathlib.Path.exists", lambda _: pytest.fail("looked up again"))
    assert song.read("mixture").shape == song.read("bass").shape == (2, 6_000)


# ---------------------------------------------------------------------------- excluded songs


def test_excluded_songs_are_neither_trained_nor_validated_on(root, config):
    chosen = config.override({"data": {"exclude": ["b", "w", "t"], "remix": 1}})
    shutil.rmtree(root / "train" / "b")  # it need not even be there
    assert [song.name for song in TrainingBatches(chosen).example.songs] == ["a", "c"]
    assert [segment.track for segment in validation_segments(chosen)] == ["v"]
    assert [song.name for song in tracks(root, "test")] == ["t"]


def test_an_excluded_folder_need_not_be_a_pair(tmp_path):
    for song in ("train/a", "train/b", "val/v"):
        make_pair(tmp_path / song)
    (tmp_path / "train" / "notes").mkdir()
    assert [folder.name for folder in track_folders(tmp_path, "train", ["notes", "b"])] == ["a"]
    for name in ("Abend", "Gale"):
        make_pair(tmp_path / "flat" / name)
    (tmp_path / "flat" / "notes").mkdir()
    assert [folder.name for folder in track_folders(tmp_path / "flat", "train", ["notes"])] == ["Abend"]
    with pytest.raises(InputError, match="holds no train songs among its pairs"):
        track_folders(tmp_path / "flat", "train", ["notes", "Abend"])


def test_exclusions_of_unknown_and_of_all_songs_are_refused(config):
    for use in (TrainingBatches, validation_segments):
        with pytest.raises(InputError, match=r"data\.exclude names 'd', but .* has no such song"):
            use(config.override({"data": {"exclude": ["a", "d"]}}))
    with pytest.raises(InputError, match=r"data\.exclude leaves no train songs in .*splits\.csv"):
        TrainingBatches(config.override({"data": {"exclude": ["a", "b", "c"]}}))


def test_a_song_list_is_read_as_written_and_refuses_other_names(tmp_path):
    file = tmp_path / "list"
    checks.write_song_list(file, ["Été", "a #1"])
    file.write_text(f"# these\n\n  {file.read_text()}  \n#b\n")
    assert checks.read_song_list(file) == ["Été", "a #1"]
    for name in ("#1", " a", "a\nb"):
        with pytest.raises(InputError, match="cannot hold the name"):
            checks.write_song_list(file, [name])
    (tmp_path / "sound").write_bytes(b"\xff\xfe\xfd")
    reasons = {"none": "No such file or directory", "": "Is a directory", "sound": "not UTF-8 text"}
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=f"{reason}; choose a list of songs"):
            checks.read_song_list(tmp_path / name)


# ---------------------------------------------------------------------------- unreadable files


def test_songs_that_do_not_open_are_skipped_only_on_request(root, config):
    os.truncate(root / "train" / "b" / "bass.wav", 1_000)
    with pytest.raises(InputError, match=r"b/bass\.wav is damaged or cut short"):
        TrainingBatches(config)
    with iter(TrainingBatches(config.override({"data": {"skip_unreadable": True, "remix": 0}}))) as stream:
        batches = [next(stream) for _ in range(6)]
    assert {song for batch in batches for song in batch["song"]} == {"a", "c"}
    for batch in batches:
        (sentence,) = batch["skipped"]  # once, though both examples report it
        assert "b/bass.wav is damaged or cut short" in sentence


def break_later(path):
    """Put a NaN into the file, whose header stays valid."""
    sound, rate = audio.read(path)
    sound[:, 3_000] = np.nan
    soundfile.write(path, sound.T, rate, subtype="FLOAT")


def test_an_example_is_drawn_again_if_a_file_fails_later(root, config):
    chosen = config.override({"data": {**PLAIN, "skip_unreadable": True}})
    before = [TrainingBatches(chosen).example(index) for index in range(30)]
    assert all(example["skipped"] == () for example in before)
    for source in SOURCES:
        break_later(root / "train" / "b" / f"{source}.wav")
    after = [TrainingBatches(chosen).example(index) for index in range(30)]
    redrawn = [index for index, example in enumerate(after) if example["skipped"]]
    assert 3 < len(redrawn) < 20
    for index, (example, other) in enumerate(zip(after, before, strict=True)):
        if index in redrawn:
            assert other["song"] == "b"
            rng = np.random.default_rng([0, index, 1])  # seed, number, attempt
            rng.random()
            assert example["song"] == ("a" if rng.integers(12_000) < 6_000 else "c")
            assert len(example["skipped"]) == 1
            assert "b/drums.wav holds NaN" in example["skipped"][0]
            assert np.abs(example["mixture"]).max() > 0.1  # sound, not zeros
        else:
            assert same(example, other)
    assert {after[index]["song"] for index in redrawn} == {"a", "c"}
    again = TrainingBatches(chosen).example
    assert all(same(again(index), after[index]) for index in redrawn)
    strict = TrainingBatches(chosen.override({"data": {"skip_unreadable": False}})).example
    with pytest.raises(InputError, match=r"b/drums\.wav holds NaN"):
        strict(redrawn[0])


def test_a_set_without_a_readable_song_is_refused(root, config):
    skipping = config.override({"data": {"skip_unreadable": True}, "training": {"segment_seconds": 6_000 / RATE}})
    batches = TrainingBatches(skipping)
    for song in "abc":
        (root / "train" / song / "drums.wav").unlink()
    sentence = r"holds 3 training songs and none can be read; the first error is: .*"
    with iter(batches) as stream, pytest.raises(InputError, match=rf"{sentence}/drums\.wav does not exist"):
        next(stream)
    with pytest.raises(InputError, match=rf"{sentence}/a lacks drums\.wav"):
        TrainingBatches(skipping)


def test_by_default_nothing_is_skipped_or_excluded():
    data = preset("tiny").data
    assert (data.exclude, data.skip_unreadable) == ((), False)
