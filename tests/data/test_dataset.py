"""Data sets in stems and their training batches: equal seeds give equal batches, every refusal is one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import PLAIN, RATE, make_song, take

from twinsep import audio
from twinsep.config import SOURCES, preset
from twinsep.data.augment import STEP, dither, low_pass
from twinsep.data.dataset import (
    MUSDB_VALIDATION,
    Track,
    open_track,
    scored_splits,
    sources_of,
    tracks,
)
from twinsep.data.loader import BatchIterator, TrainingBatches
from twinsep.data.validation import validation_segments
from twinsep.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three training songs (one shorter than a segment), two validation songs, one test song and one real song."""
    root = tmp_path_factory.mktemp("songs")
    lines = ["track,split"]
    songs = [("long", "train", 20_000), ("middle", "train", 10_000), ("short", "train", 1_500)]
    songs += [("v1", "valid", 9_000), ("v2", "valid", 3_000), ("t", "test", 2_000), ("r", "real", 2_000)]
    for seed, (name, split, frames) in enumerate(songs):
        make_song(root / ("train" if split in ("train", "valid") else "test") / name, frames, seed)
        lines.append(f"{name},{split}")
    (root / "splits.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def config(root):
    """Segments of 4,000 samples."""
    training = {"segment_seconds": 4_000 / RATE, "validation_seconds": 4_000 / RATE, "batch_size": 2}
    return preset("tiny").override({"data": {"root": str(root)}, "training": training})


# ---------------------------------------------------------------------------- songs and splits


def test_the_table_decides_the_split(root):
    assert {split: [track.name for track in tracks(root, split)] for split in ("train", "valid", "test", "real")} == {
        "train": ["long", "middle", "short"],
        "valid": ["v1", "v2"],
        "test": ["t"],
        "real": ["r"],
    }


def test_without_a_table_the_split_is_musdbs(tmp_path):
    assert len(set(MUSDB_VALIDATION)) == 14
    for name in ("A - Song", "B - Song", MUSDB_VALIDATION[3]):
        make_song(tmp_path / "train" / name, 100)
    make_song(tmp_path / "test" / "C - Song", 100)
    (tmp_path / "train" / ".cache").mkdir()
    assert [track.name for track in tracks(tmp_path, "train")] == ["A - Song", "B - Song"]
    assert [track.name for track in tracks(tmp_path, "valid")] == [MUSDB_VALIDATION[3]]
    assert [track.name for track in tracks(tmp_path, "test")] == ["C - Song"]
    with pytest.raises(InputError, match=r"test holds no real songs: .*dvc repro data"):
        tracks(tmp_path, "real")


def test_real_songs_are_scored_where_the_table_lists_some(root, tmp_path):
    assert scored_splits(root) == ["test", "real"]
    assert scored_splits(tmp_path) == ["test"]
    (tmp_path / "splits.csv").write_text("track,split\na,test\n")
    assert scored_splits(tmp_path) == ["test"]
    (tmp_path / "splits.csv").write_text("track,split\na,test\nb,real\n")
    assert scored_splits(tmp_path) == ["test", "real"]  # its folder is missing, which matters only when it is read
    with pytest.raises(InputError, match=r"lists the real song 'b', but .* does not exist"):
        tracks(tmp_path, "real")


def test_stems_are_read_and_summed(tmp_path):
    stems = make_song(tmp_path / "song", 1_000)
    track = open_track(tmp_path / "song")
    assert track == Track("song", tmp_path / "song", 1_000, RATE)
    for source in SOURCES:
        assert np.array_equal(track.read(source), stems[source])
    assert np.array_equal(track.read("vocals", 100, 50), stems["vocals"][:, 100:150])
    assert np.array_equal(track.read("bass", 900), stems["bass"][:, 900:])
    assert np.array_equal(track.read("instrumental"), stems["drums"] + stems["bass"] + stems["other"])
    assert np.array_equal(track.read("mixture"), sum(stems.values()))
    with pytest.raises(InputError, match="unknown stem 'voice'; known: drums"):
        track.read("voice")


def test_a_missing_mixture_is_the_sum_and_mono_becomes_stereo(tmp_path):
    stems = make_song(tmp_path / "song", 1_000, mixture=False, channels=1)
    mixture = open_track(tmp_path / "song").read("mixture")
    assert mixture.shape == (2, 1_000)
    assert np.array_equal(mixture[:1], sum(stems.values()))
    assert np.array_equal(mixture[0], mixture[1])


def test_a_silent_stem_is_accepted(tmp_path):
    make_song(tmp_path / "song", 1_000)
    audio.write(tmp_path / "song" / "vocals.wav", np.zeros((2, 1_000)), RATE)
    assert not open_track(tmp_path / "song").read("vocals").any()


def test_faulty_songs_are_refused(tmp_path):
    song = tmp_path / "song"
    make_song(song, 1_000)
    audio.write(song / "bass.wav", np.zeros((2, 990)), RATE)
    with pytest.raises(InputError, match=r"song/bass\.wav has 990 samples but drums\.wav has 1000: cut or pad"):
        open_track(song)
    audio.write(song / "bass.wav", np.zeros((2, 1_000)), 48_000)
    with pytest.raises(InputError, match=r"song/bass\.wav is at 48000 Hz but the model is at 44100 Hz: .*-ar 44100"):
        open_track(song)
    for name in ("bass.wav", "vocals.wav"):
        (song / name).unlink()
    with pytest.raises(InputError, match=r"song lacks bass\.wav, vocals\.wav: .*`twinsep check-data .*--exclude"):
        open_track(song)


def test_faulty_data_sets_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"data folder .*none does not exist: .*dvc repro data.*data\.root"):
        tracks(tmp_path / "none", "train")
    with pytest.raises(InputError, match=r"train holds no train songs: .*dvc repro data"):
        tracks(tmp_path, "train")
    with pytest.raises(InputError, match="unknown split 'training'; known: train, valid, test, real"):
        tracks(tmp_path, "training")
    for table, sentence in [
        ("track,split\na,train\na,valid\n", r"splits\.csv, line 3: 'a' is listed twice"),
        ("track,split\na,dev\n", r"splits\.csv, line 2 lacks a track or a valid split"),
        ("name;split\na;train\n", r"splits\.csv, line 2 lacks a track"),
        ("track,split\na,train\n", r"splits\.csv lists the train song 'a', but .*train/a does not exist"),
        ("track,split\na,test\n", r"splits\.csv holds no train songs"),
    ]:
        (tmp_path / "splits.csv").write_text(table)
        with pytest.raises(InputError, match=sentence) as caught:
            tracks(tmp_path, "train")
        assert "\n" not in str(caught.value)
    (tmp_path / "splits.csv").write_bytes(b"track,split\n\xff\xfe,train\n")
    with pytest.raises(InputError, match="cannot be read as a UTF-8 table"):
        tracks(tmp_path, "train")


# ---------------------------------------------------------------------------- batches


def test_equal_seeds_give_equal_batches_and_other_seeds_others(config):
    batches = TrainingBatches(config)
    with iter(batches) as first, iter(TrainingBatches(config)) as second:
        digests = take(first, 6)
        assert take(second, 6) == digests
    assert len(set(digests)) == 6
    with iter(TrainingBatches(config.override({"training": {"seed": 1}}))) as other:
        assert not set(take(other, 6)) & set(digests)


def test_batches_of_stems_are_the_same_in_every_version(config):
    # Committed results depend on them. Without gain and low-pass, whose last bits depend on the processor.
    data = {"gain_db": 0, "low_pass": 0, "silent_target": 0.5}
    both = config.override({"model": {"targets": ["instrumental", "drums"]}, "data": data})
    with iter(TrainingBatches(both)) as stream:
        assert [found[:16] for found in take(stream, 4)] == [
            "b80af7146ec20188",
            "3d7460978360a229",
            "c8f30b5372454735",
            "048d3545c8cbf827",
        ]


def test_batches_have_the_documented_shapes_types_and_names(config):
    both = config.override({"model": {"targets": ["vocals", "instrumental"]}, "training": {"batch_size": 3}})
    with iter(TrainingBatches(both)) as stream:
        next(stream)
        batch = next(stream)
    assert (batch["mixture"].shape, batch["target"].shape) == ((3, 2, 4_000), (3, 2, 2, 4_000))
    assert (batch["mixture"].dtype, batch["target"].dtype) == (np.float32, np.float32)
    assert batch["index"] == (3, 4, 5)
    assert all(set(song.split(" | ")) <= {"long", "middle", "short"} for song in batch["song"])


@pytest.mark.parametrize("batch_size", [2, 3])
def test_the_state_restores_the_very_next_batch(config, batch_size):
    batches = TrainingBatches(config.override({"training": {"batch_size": batch_size}}))
    with iter(batches) as stream, iter(batches) as resumed:
        take(stream, 3)
        state = json.loads(json.dumps(stream.get_state()))
        following = take(stream, 3)
        take(resumed, 1)
        resumed.set_state(state)
        assert take(resumed, 3) == following
        resumed.set_state(state)
        resumed.close()
        assert take(resumed, 3) == following
    assert state == {"next_example": 3 * batch_size}


def test_workers_change_only_the_speed(config, tmp_path):
    # In a process of its own, so that leftovers of the workers show when it ends.
    with iter(TrainingBatches(config)) as stream:
        expected = take(stream, 5)
    (tmp_path / "config.json").write_text(json.dumps(config.override({"data": {"workers": 2}}).to_dict()))
    program = tmp_path / "program.py"
    program.write_text(
        "import json, pathlib, sys\n"
        "from twinsep.data.loader import TrainingBatches\n"
        "from twinsep.config import from_dict\n"
        "from helpers.datasets import take\n"
        "if __name__ == '__main__':\n"
        "    config = from_dict(json.loads(pathlib.Path(sys.argv[1]).read_text()))\n"
        "    with iter(TrainingBatches(config)) as stream:\n"
        "        print(json.dumps(take(stream, 5)))\n"
    )
    run = subprocess.run(
        [sys.executable, program, tmp_path / "config.json"],
        env={"PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(Path(__file__).parents[1])]), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == expected
    assert run.stderr == ""


def test_the_mixture_is_the_sum_of_target_and_residual(config):
    make = TrainingBatches(config.override({"model": {"targets": ["instrumental", "vocals"]}, "data": {"remix": 1}}))
    for index in range(8):
        example = make.example(index)
        assert np.array_equal(example["mixture"], example["target"].sum(axis=0))
    make = TrainingBatches(config.override({"model": {"targets": list(SOURCES)}}))
    assert np.abs(make.example(0)["mixture"] - make.example(0)["target"].sum(axis=0)).max() < 1e-6


def test_an_example_without_augmentation_is_a_segment_of_a_song(config, root):
    make = TrainingBatches(config.override({"data": PLAIN})).example
    for index in range(6):
        example = make(index)
        song = open_track(root / "train" / example["song"])
        whole = np.pad(song.read("mixture"), ((0, 0), (0, max(0, 4_000 - song.frames))))
        windows = np.lib.stride_tricks.sliding_window_view(whole[0], 4_000)
        assert np.abs(windows - example["mixture"][0]).max(axis=1).min() < 5 * STEP


def test_songs_are_drawn_in_proportion_to_their_length(config):
    make = TrainingBatches(config.override({"data": PLAIN})).example
    names = [make(index)["song"] for index in range(400)]
    shares = [names.count(name) / 400 for name in ("long", "middle", "short")]
    assert np.allclose(shares, np.array([20_000, 10_000, 1_500]) / 31_500, atol=0.06)


def test_a_short_song_is_padded_at_its_end(config):
    make = TrainingBatches(config.override({"data": PLAIN})).example
    example = next(example for example in map(make, range(1000)) if example["song"] == "short")
    assert np.abs(example["mixture"][:, :1_500]).max() > 0.1
    assert 0 < np.abs(example["mixture"][:, 1_500:]).max() <= 4 * STEP


def test_a_segment_longer_than_every_song_is_refused(config):
    assert TrainingBatches(config.override({"training": {"segment_seconds": 20_000 / RATE}}))
    sentence = r"segment_seconds is 1000, but the longest .* song, long, lasts 0\.453 s: set .* to at most 0\.453$"
    with pytest.raises(InputError, match=sentence):
        TrainingBatches(config.override({"training": {"segment_seconds": 1000}}))
    assert TrainingBatches(config.override({"training": {"segment_seconds": 0.453}}))


def test_remix_draws_each_stem_from_a_position_of_its_own(config):
    make = TrainingBatches(config.override({"data": {"remix": 1}})).example
    names = [make(index)["song"].split(" | ") for index in range(30)]
    assert all(len(name) == 4 for name in names)
    assert sum(len(set(name)) > 1 for name in names) > 20
    make = TrainingBatches(config.override({"data": {"remix": 0}})).example
    assert all(" | " not in make(index)["song"] for index in range(30))


@pytest.mark.parametrize("targets", [["instrumental"], ["vocals", "drums"]])
def test_silent_targets_are_as_frequent_as_configured(config, targets):
    make = TrainingBatches(config.override({"model": {"targets": targets}, "data": {"silent_target": 0.3}})).example
    examples = [make(index) for index in range(300)]
    # A silent target is the sum of at most three dithers; the other sources stay audible.
    silent = np.array([np.abs(example["target"]).max(axis=(1, 2)) <= 3 * STEP for example in examples])
    assert 0.2 < silent.any(axis=1).mean() < 0.4
    assert np.allclose(silent.mean(axis=0), 0.3 / len(targets), atol=0.1)  # each target equally often
    assert all(np.abs(example["mixture"]).max() > 0.05 for example in examples)
    assert all(np.abs(example["target"]).max() > 0 for example in examples)


def test_each_augmentation_does_what_its_name_says(config):
    def example(**changes):
        changed = config.override({"model": {"targets": list(SOURCES)}, "data": {**PLAIN, **changes}})
        return TrainingBatches(changed).example(3)["target"]

    plain = example()
    close = {"atol": 3 * STEP, "rtol": 0}
    assert np.allclose(example(polarity=1), -plain, **close)
    assert np.allclose(example(channel_swap=1), plain[:, ::-1], **close)
    decibels = 10 * np.log10((example(gain_db=3) ** 2).mean(axis=(1, 2)) / (plain**2).mean(axis=(1, 2)))
    assert np.all(np.abs(decibels) < 3.01)
    assert len(set(np.round(decibels, 2))) == 4
    spectrum = np.abs(np.fft.rfft(example(low_pass=1) * np.hanning(4_000)))
    frequency = np.fft.rfftfreq(4_000, 1 / RATE)
    assert spectrum[..., frequency > 20_600].max() < 0.02
    assert spectrum[..., frequency < 11_000].max() > 1


def test_the_low_pass_keeps_tones_below_and_removes_tones_above():
    time = np.arange(RATE) / RATE
    window = np.hanning(RATE)
    low, high = np.sin(2 * np.pi * 11_900 * time) * window, np.sin(2 * np.pi * 12_600 * time) * window
    filtered = low_pass((low + high).astype(np.float32), 12_000.0, RATE)
    assert filtered.dtype == np.float32
    assert np.abs(filtered - low).max() < 1e-4


def test_dither_is_triangular_within_a_step():
    noise = dither((2, 200_000), np.random.default_rng(0))
    assert noise.dtype == np.float32
    assert np.abs(noise).max() <= STEP
    assert abs(float(noise.mean())) < 0.005 * STEP
    assert float(noise.std()) == pytest.approx(STEP / np.sqrt(6), rel=0.01)


def test_draws_do_not_depend_on_the_probabilities(config):
    plain = TrainingBatches(config.override({"data": PLAIN})).example
    varied = TrainingBatches(config.override({"data": {"remix": 1, "low_pass": 1, "polarity": 1}})).example
    songs = [varied(index)["song"].split(" | ")[0] for index in range(20)]
    assert [plain(index)["song"] for index in range(20)] == songs


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_stem_is_named_by_the_stream(tmp_path, config, workers):
    make_song(tmp_path / "train" / "song", 5_000)
    batches = TrainingBatches(config.override({"data": {"root": str(tmp_path), "workers": workers}}))
    audio.write(tmp_path / "train" / "song" / "other.wav", np.zeros((2, 10)), RATE)
    with iter(batches) as stream, pytest.raises(InputError, match=r"song/other\.wav has 10 samples"):
        next(stream)


def test_importing_the_loader_imports_no_framework_and_no_grain():
    unwanted = "{'torch', 'jax', 'grain', 'av'}"
    program = f"import sys, twinsep.data.loader; sys.exit(' '.join({unwanted} & set(sys.modules)) or 0)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


# ---------------------------------------------------------------------------- validation


def test_validation_excerpts_are_the_same_every_time(config, root):
    first, again = validation_segments(config), validation_segments(config)
    assert [segment.track for segment in first] == ["v1", "v2"]
    assert [segment.mixture.shape for segment in first] == [(2, 4_000), (2, 3_000)]
    assert [segment.target.shape for segment in first] == [(1, 2, 4_000), (1, 2, 3_000)]
    for (name, mixture, target), other in zip(first, again, strict=True):
        assert np.array_equal(mixture, other.mixture)
        assert np.array_equal(target, other.target)
        assert np.array_equal(target[0] + open_track(root / "train" / name).read("vocals", *_span(name)), mixture)


def _span(name):
    return {"v1": (2_500, 4_000), "v2": (0, 3_000)}[name]  # the middle, as these songs have voice everywhere


def test_the_validation_excerpt_is_where_the_voice_is(tmp_path, config):
    make_song(tmp_path / "train" / MUSDB_VALIDATION[0], 20_000)
    voice = np.zeros((2, 20_000))
    voice[:, 16_000:] = 0.1
    audio.write(tmp_path / "train" / MUSDB_VALIDATION[0] / "vocals.wav", voice, RATE)
    (tmp_path / "train" / MUSDB_VALIDATION[0] / "mixture.wav").unlink()
    (segment,) = validation_segments(config.override({"data": {"root": str(tmp_path)}}))
    assert (segment.mixture - segment.target[0]).max() == pytest.approx(0.1, abs=1e-4)


def test_validation_takes_fewer_songs_if_asked_and_refuses_none(tmp_path, config):
    fewer = validation_segments(config.override({"training": {"validation_tracks": 1}}))
    assert [segment.track for segment in fewer] == ["v1"]
    make_song(tmp_path / "train" / "song", 100)
    with pytest.raises(InputError, match=r"train holds no valid songs: .*dvc repro data"):
        validation_segments(config.override({"data": {"root": str(tmp_path)}}))


def test_sources_of_stems_and_the_type_of_the_iterator(config):
    assert sources_of("instrumental") == ("drums", "bass", "other")
    assert sources_of("vocals") == ("vocals",)
    assert isinstance(iter(TrainingBatches(config)), BatchIterator)
