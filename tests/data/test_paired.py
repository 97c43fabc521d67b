"""Paired songs: finding, splitting, reading, training, scoring; every refusal is one sentence that names the path."""

import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
from helpers.datasets import PLAIN, RATE, make_pair, make_song

from ablations import settings
from ablations.fault_injection import write_song
from ablations.stages import figure, separate
from ablations.stages.inventory import inventory
from torch_impl.train import Trainer
from twinsep import audio, checkpoints
from twinsep.config import preset
from twinsep.data import checks, paired
from twinsep.data.augment import STEP
from twinsep.data.dataset import MUSDB_VALIDATION, PairedTrack, Track, open_track, tracks
from twinsep.data.loader import TrainingBatches
from twinsep.data.paired import split_by_name
from twinsep.data.validation import validation_segments
from twinsep.errors import InputError
from twinsep.evaluation import evaluate, systems
from twinsep.training.loop import train
from twinsep.training.run_dir import LAST
from twinsep.utils.files import write_json

#: Names that the hash splits into one validation, one test and three training songs.
FLAT = ("Gale", "Duna", "Abend", "Bruma", "Cielo")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two training songs, one shorter than a segment, one validation song and one test song."""
    root = tmp_path_factory.mktemp("pairs")
    for seed, (song, frames) in enumerate(
        [("train/long", 60_000), ("train/short", 15_000), ("val/v", 50_000), ("test/t", 50_000)]
    ):
        make_pair(root / song, frames, seed)
    (root / ".cache").mkdir()
    (root / "train" / ".cache").mkdir()
    return root


@pytest.fixture
def config(root):
    """Segments of 4,000 samples."""
    training = {"segment_seconds": 4_000 / RATE, "validation_seconds": 4_000 / RATE}
    return preset("tiny").override({"data": {"root": str(root)}, "training": training})


def names(root, split, **options):
    return [track.name for track in tracks(root, split, **options)]


# ---------------------------------------------------------------------------- splits


def test_split_folders_decide_the_split(root):
    assert [names(root, split) for split in ("train", "valid", "test")] == [["long", "short"], ["v"], ["t"]]
    assert all(isinstance(track, PairedTrack) for track in tracks(root, "train"))


def test_the_folder_valid_works_as_well_as_val(tmp_path):
    make_pair(tmp_path / "train" / "a")
    make_pair(tmp_path / "valid" / "b")
    assert names(tmp_path, "valid") == ["b"]


def test_without_split_folders_a_hash_of_the_name_decides(tmp_path):
    for name in FLAT:
        make_pair(tmp_path / name, 100)
    assert names(tmp_path, "valid") == ["Gale"]
    assert names(tmp_path, "test") == ["Duna"]
    assert names(tmp_path, "train") == ["Abend", "Bruma", "Cielo"]
    shutil.rmtree(tmp_path / "Abend")
    make_pair(tmp_path / "Fjord", 100)
    assert names(tmp_path, "train") == ["Bruma", "Cielo", "Fjord"]


def test_the_hash_of_a_name_is_stable():
    expected = {"Abend": "train", "Gale": "valid", "Duna": "test", "Été": "test", "Halo": "train"}
    assert {name: split_by_name(name) for name in expected} == expected
    assert split_by_name(unicodedata.normalize("NFD", "Été")) == "test"
    splits = [split_by_name(f"song {i}") for i in range(10_000)]
    assert [splits.count(split) for split in ("train", "valid", "test")] == [7939, 1047, 1014]


def test_a_song_may_be_named_as_a_split(tmp_path):
    for name in ("Abend", "test"):
        make_pair(tmp_path / name, 100)
    assert names(tmp_path, "train") == ["Abend", "test"]
    assert split_by_name("test") == "train"


def test_songs_in_stems_are_not_pairs(songs, root):
    assert paired.is_paired_dataset(root)
    assert not paired.is_paired_dataset(songs)
    assert type(tracks(songs, "train")[0]) is Track


# ---------------------------------------------------------------------------- one song


@pytest.mark.parametrize(("target", "rest"), [("instrumental", "vocals"), ("vocals", "instrumental")])
def test_out_wav_is_the_target_and_the_sources_sum_to_in_wav(tmp_path, target, rest):
    mixture, wanted = make_pair(tmp_path / "song")
    song = open_track(tmp_path / "song", targets=(target,))
    assert np.array_equal(song.read(target), wanted)
    assert np.array_equal(song.read(rest), mixture - wanted)
    assert np.array_equal(song.read("mixture", 100, 50), mixture[:, 100:150])
    assert np.array_equal(sum(song.read(source) for source in song.sources), mixture)
    with pytest.raises(InputError, match="unknown stem 'drums'; known: instrumental, vocals, mixture"):
        song.read("drums")


def test_mono_becomes_stereo(tmp_path):
    mixture, target = make_pair(tmp_path / "song", channels=1)
    audio.write(tmp_path / "song" / "out.wav", np.concatenate([target, target]), RATE, subtype="PCM_16")
    song = open_track(tmp_path / "song")
    assert np.array_equal(song.read("mixture"), np.concatenate([mixture, mixture]))
    assert np.array_equal(song.read("vocals"), np.concatenate([mixture - target] * 2))


# ---------------------------------------------------------------------------- two stems


def make_two_stems(folder, rest, files, seed=0):
    """Write a song as other trainers lay it out; returns its parts by stem."""
    mixture, instrumental = make_pair(folder, seed=seed)
    for name in ("in.wav", "out.wav"):
        (folder / name).unlink()
    parts = {"mixture": mixture, "vocals": mixture - instrumental, "instrumental": instrumental}
    for name in files:
        audio.write(folder / f"{rest if name == 'instrumental' else name}.wav", parts[name], RATE, subtype="PCM_16")
    return parts


@pytest.mark.parametrize("rest", ["instrumental", "accompaniment", "no_vocals", "other"])
@pytest.mark.parametrize(
    "files",
    [
        ("mixture", "vocals", "instrumental"),
        ("mixture", "vocals"),
        ("mixture", "instrumental"),
        ("vocals", "instrumental"),
    ],
)
def test_songs_in_two_stems_are_used_under_any_name(tmp_path, config, rest, files):
    parts = make_two_stems(tmp_path / "train/M.E.R.C. Music - Knockout", rest, files)
    make_two_stems(tmp_path / "val/v", rest, files, seed=1)
    for target in ("instrumental", "vocals"):
        (song,) = tracks(tmp_path, "train", targets=(target,))
        assert song.name == "M.E.R.C. Music - Knockout"
        for stem, part in parts.items():
            assert np.array_equal(song.read(stem), part)
        chosen = config.override({"model": {"targets": [target]}, "data": {**PLAIN, "root": str(tmp_path)}})
        example = TrainingBatches(chosen).example(0)
        assert example["song"] == song.name
        assert np.abs(example["target"][0] - parts[target]).max() <= 2 * STEP
        assert np.abs(example["mixture"] - parts["mixture"]).max() <= 4 * STEP
        assert len(validation_segments(chosen)) == 1
    refused(
        tmp_path, "train", "holds vocals and the rest of the song, not drums: set model.targets", targets=("drums",)
    )


def test_a_table_and_the_names_of_musdb_tell_the_split_of_songs_in_two_stems(tmp_path):
    for seed, name in enumerate(("train/a", f"train/{MUSDB_VALIDATION[0]}", "test/t")):
        make_two_stems(tmp_path / name, "accompaniment", ("mixture", "vocals", "instrumental"), seed)
    assert {split: names(tmp_path, split) for split in ("train", "valid", "test")} == {
        "train": ["a"],
        "valid": [MUSDB_VALIDATION[0]],
        "test": ["t"],
    }
    (tmp_path / "splits.csv").write_text(f"track,split\na,valid\n{MUSDB_VALIDATION[0]},train\nt,test\n")
    assert names(tmp_path, "valid") == ["a"]
    songs, stray = checks.find_faults(tmp_path, RATE, 0.01, lambda *_: None)
    assert [*stray, *(finding for song in songs for finding in song.findings)] == []


def test_a_song_that_lost_its_drums_and_bass_is_not_in_two_stems(tmp_path, config):
    for name in ("a", "b"):
        make_song(tmp_path / "train" / name, 4_000)
    for name in ("drums", "bass"):
        (tmp_path / "train/b" / f"{name}.wav").unlink()
    assert not paired.is_paired_dataset(tmp_path)
    sentence = r"train/b lacks drums\.wav and bass\.wav, which 'a' has: add them, or leave the song out .* --exclude"
    refused(tmp_path, "train", sentence)
    with pytest.raises(InputError, match=sentence):
        TrainingBatches(config.override({"data": {"root": str(tmp_path)}}))


def test_a_folder_with_too_few_files_is_told_which_are_wanted(tmp_path):
    make_two_stems(tmp_path / "train/a", "no_vocals", ("mixture", "vocals"))
    make_two_stems(tmp_path / "train/b", "no_vocals", ("vocals",))
    wanted = r"train/b holds neither in\.wav nor out\.wav, nor two of mixture\.wav, vocals\.wav and instrumental\.wav"
    refused(tmp_path, "train", wanted)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda song: (song / "out.wav").unlink(), r"train/b lacks out\.wav: .*`twinsep check-data .*--exclude"),
        (lambda song: (song / "in.wav").unlink(), r"train/b lacks in\.wav: "),
        (lambda song: [(song / n).unlink() for n in ("in.wav", "out.wav")], r"train/b holds neither in\.wav nor out"),
        (
            lambda song: audio.write(song / "out.wav", np.zeros((2, 990)), RATE),
            r"train/b/out\.wav has 990 samples but in\.wav has 4000: cut or pad",
        ),
        (
            lambda song: audio.write(song / "in.wav", np.zeros((2, 4_000)), 48_000),
            r"train/b/in\.wav is at 48000 Hz but the model is at 44100 Hz: .*-i \S*train/b/in\.wav -ar 44100",
        ),
        (lambda song: os.truncate(song / "in.wav", 1_000), r"train/b/in\.wav is damaged or cut short"),
        (lambda song: (song / "out.wav").write_bytes(b""), r"train/b/out\.wav is empty"),
    ],
)
def test_faulty_songs_are_refused(tmp_path, spoil, sentence):
    for name in ("a", "b"):
        make_pair(tmp_path / "train" / name)
    spoil(tmp_path / "train" / "b")
    refused(tmp_path, "train", sentence)


def refused(root, split, sentence, **options):
    with pytest.raises(InputError, match=sentence) as caught:
        tracks(root, split, **options)
    assert "\n" not in str(caught.value)


def test_faulty_data_sets_are_refused(tmp_path):
    refused(tmp_path, "train", r"train holds no train songs: .*<song>/in\.wav, out\.wav")
    make_pair(tmp_path / "Abend")
    refused(tmp_path, "valid", r"holds no valid songs among its pairs: .*a hash .*folders train/, val/ and test/")
    refused(tmp_path, "real", "holds paired songs, which have no split 'real': choose train, valid or test")
    (tmp_path / "notes").mkdir()
    refused(tmp_path, "train", "notes holds neither in.wav nor out.wav")
    make_pair(tmp_path / "train" / "b")
    refused(tmp_path, "train", "Abend lies outside the split folders: move it into train/, val/ or test/")
    (tmp_path / "Abend").rename(tmp_path / "train" / "Abend")
    assert names(tmp_path, "train") == ["Abend", "b"]  # other folders are ignored
    refused(tmp_path, "valid", r"holds no valid songs among its pairs: put some into .*/val$")
    (tmp_path / "val").mkdir()
    refused(tmp_path, "valid", r"holds no valid songs among its pairs: put some into .*/val$")
    (tmp_path / "splits.csv").write_text("track,split\nb,train\n")
    refused(tmp_path, "train", r"splits\.csv is for songs in stems: remove it")


@pytest.mark.parametrize("targets", [["drums"], ["instrumental", "vocals"]])
def test_targets_that_a_pair_does_not_have_are_refused(config, root, targets):
    sentence = rf"out\.wav holds a single target, instrumental or vocals, not {', '.join(targets)}: set model\.targets"
    chosen = config.override({"model": {"targets": targets}})
    mixture = systems.baseline_system("mixture", chosen.model, str(root))
    for use in (
        lambda: TrainingBatches(chosen),
        lambda: validation_segments(chosen),
        lambda: evaluate.score_songs(mixture, chosen.model, str(root), ["test"]),
        lambda: systems.fit_band_gains(chosen.model, str(root)),
    ):
        with pytest.raises(InputError, match=sentence):
            use()


# ---------------------------------------------------------------------------- batches and validation


@pytest.mark.parametrize("target", ["instrumental", "vocals"])
def test_the_target_without_augmentation_is_a_segment_of_out_wav(config, root, target):
    make = TrainingBatches(config.override({"model": {"targets": [target]}, "data": PLAIN})).example
    for index in range(4):
        example = make(index)
        folder = root / "train" / example["song"]
        wholes = [audio.read(folder / name)[0] for name in ("out.wav", "in.wav")]
        starts = np.lib.stride_tricks.sliding_window_view(wholes[0][0, :-3_950], 50)
        start = int(np.abs(starts - example["target"][0, 0, :50]).max(axis=1).argmin())
        for whole, sound in zip(wholes, (example["target"][0], example["mixture"]), strict=True):
            assert np.abs(whole[:, start : start + 4_000] - sound).max() <= 2 * STEP


def test_remix_draws_target_and_residual_from_positions_of_their_own(config):
    make = TrainingBatches(config.override({"data": {"remix": 1}})).example
    found = [make(index)["song"].split(" | ") for index in range(60)]
    assert {tuple(name) for name in found} == {(a, b) for a in ("long", "short") for b in ("long", "short")}


def test_augmentations_work_on_two_sources(config):
    def example(**changes):
        made = TrainingBatches(config.override({"data": {**PLAIN, **changes}})).example(3)
        return np.stack([made["target"][0], made["mixture"] - made["target"][0]])

    plain = example()
    close = {"atol": 3 * STEP, "rtol": 0}
    assert np.allclose(example(polarity=1), -plain, **close)
    assert np.allclose(example(channel_swap=1), plain[:, ::-1], **close)
    gains = np.sqrt((example(gain_db=3) ** 2).mean(axis=(1, 2)) / (plain**2).mean(axis=(1, 2)))
    assert np.all(np.abs(20 * np.log10(gains)) < 3.01)
    assert abs(gains[0] - gains[1]) > 0.01
    silent = example(silent_target=1)
    assert np.abs(silent[0]).max() <= STEP
    assert np.allclose(silent[1], plain[1], **close)
    spectrum = np.abs(np.fft.rfft(example(low_pass=1) * np.hanning(4_000)))
    assert spectrum[..., np.fft.rfftfreq(4_000, 1 / RATE) > 20_600].max() < 0.02 < spectrum.max()


def test_the_validation_excerpt_of_a_pair_is_where_the_voice_is(tmp_path, config):
    mixture, _ = make_pair(tmp_path / "val" / "v", 20_000)
    voice = np.where(np.arange(20_000) < 16_000, 0, 0.1)
    audio.write(tmp_path / "val" / "v" / "out.wav", mixture - voice, RATE, subtype="PCM_24")
    make_pair(tmp_path / "train" / "a")
    (segment,) = validation_segments(config.override({"data": {"root": str(tmp_path)}}))
    assert (segment.mixture - segment.target[0]).min() == pytest.approx(0.1, abs=1e-4)


# ---------------------------------------------------------------------------- commands and stages


@pytest.mark.usefixtures("one_thread")
def test_two_training_steps_on_pairs_change_the_weights(micro, root, tmp_path):
    chosen = micro.override({"data": {"root": str(root)}, "training": {"steps": 2, "segment_seconds": 0.25}})
    record = train(chosen, tmp_path / "run")
    assert record["best_step"] in (1, 2)
    assert np.isfinite(record["validation"]["valid/usdr"])
    before, after = Trainer(chosen).state(), checkpoints.read(tmp_path / "run" / LAST)
    assert after.step == 2
    moved = [not np.array_equal(after.tensors[name], before[name]) for name in before if name.startswith("model/")]
    assert np.mean(moved) > 0.9


@pytest.mark.parametrize("system", systems.BASELINES)
def test_baselines_are_scored_on_pairs(micro, root, tmp_path, system):
    evaluate.evaluate_baseline(system, micro.override({"data": {"root": str(root)}}), out=tmp_path)
    records = json.loads((tmp_path / "metrics.json").read_text())
    assert {(r["split"], r["track"]) for r in records} == {("test", "t")}
    assert {r["target"] for r in records} == {"instrumental", "vocals"}
    usdr = next(r["value"] for r in records if (r["target"], r["metric"]) == ("instrumental", "usdr"))
    song = tracks(root, "test")[0]
    wanted, rest = song.read("instrumental"), song.read("vocals")
    floor = 10 * np.log10(np.square(wanted).sum() / np.square(rest).sum())
    assert usdr == pytest.approx(floor, abs=1e-3) if system == "mixture" else usdr > floor


def test_the_inventory_lists_files_with_sizes_and_times(root):
    found = {path.name: path.stat() for path in (root / "test" / "t").iterdir()}
    assert sorted(found) == ["in.wav", "out.wav"]
    files = {name: {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns} for name, stat in found.items()}
    assert inventory(root, ["train", "valid", "test"])["splits"]["test"] == {"t": {"frames": 50_000, "files": files}}


def in_pairs(folder):
    make_pair(folder / "test" / "t", 50_000)


def in_stems(folder):
    write_song(folder / "test" / "t")
    (folder / "test" / "t" / "mixture.wav").unlink()


@pytest.mark.parametrize("make", [in_pairs, in_stems])
@pytest.mark.usefixtures("one_thread")
def test_the_stages_separate_and_figure_need_no_mixture_file(micro, tmp_path, monkeypatch, make):
    make(tmp_path / "set")
    monkeypatch.setattr(settings, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(settings, "WEIGHTS", tmp_path / "weights")
    base = settings.BASE_GROUP, 0
    checkpoints.write(settings.weights_path(*base), checkpoints.Checkpoint(micro, Trainer(micro).state()))
    record = {"configuration": micro.to_dict(), "parameters": 1, "device": "cpu"}
    write_json(settings.run_path(*base), record)
    monkeypatch.setitem(settings.params()["data"], "root", str(tmp_path / "set"))
    monkeypatch.setattr(separate, "OUT", tmp_path / "separated")
    monkeypatch.setattr(figure, "OUT", tmp_path / "separation.png")
    separate.main()
    written = sorted((tmp_path / "separated").rglob("*.wav"))
    assert [path.relative_to(tmp_path / "separated").as_posix() for path in written] == [
        "mixture/instrumental.wav",
        "mixture/vocals.wav",
    ]
    mixture = tracks(tmp_path / "set", "test")[0].read("mixture")
    assert sum(audio.read(path)[0] for path in written) == pytest.approx(mixture, abs=3e-7)
    figure.main()
    assert (tmp_path / "separation.png").stat().st_size > 10_000
