"""``twinsep check-data``: every fault, made on purpose, is found by name; a clean set passes."""

import os
import re
import shutil
import sys

import numpy as np
import pytest
import soundfile
from helpers.datasets import make_pair, make_song

from twinsep import audio, cli
from twinsep.config import SOURCES
from twinsep.data import checks
from twinsep.data.dataset import tracks
from twinsep.errors import InputError

RATE = 44_100
FRAMES = 6_000
SEGMENT = 0.1  # seconds: 4,410 samples
STEMS = (*SOURCES, "mixture")


@pytest.fixture
def root(tmp_path):
    """A faultless set: two training songs, one validation song, one test song and one real song."""
    root = tmp_path / "set"
    lines = ["track,split"]
    for seed, (name, split) in enumerate(
        [("a", "train"), ("b [live]", "train"), ("v", "valid"), ("t", "test"), ("r", "real")]
    ):
        make_song(root / ("train" if split in ("train", "valid") else "test") / name, FRAMES, seed)
        lines.append(f"{name},{split}")
    (root / "splits.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def call(monkeypatch, capsys):
    """Run ``twinsep`` with these arguments; returns (exit status, output, standard error)."""
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["twinsep", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return run


def found(root):
    """The findings in the set: {(song, file): [(unusable, message)]}."""
    songs, stray = checks.find_faults(root, RATE, SEGMENT, lambda *_: None)
    collected = {}
    for name, file, message, unusable in [*stray, *(finding for song in songs for finding in song.findings)]:
        collected.setdefault((name, file), []).append((unusable, message))
    return collected


def rewrite(path, sound, rate=RATE, subtype="PCM_16"):
    soundfile.write(path, sound, rate, subtype=subtype)


def with_sample(path, value):
    sound = soundfile.read(path)[0]
    sound[5_000, 1] = value
    return sound


# ---------------------------------------------------------------------------- findings that make a song unusable


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: os.truncate(path, 9_000), "is damaged or cut short (8956 of 24000 bytes"),
        (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
        (lambda path: path.write_text("no sound"), "has no random access, being neither WAV nor FLAC"),
        (lambda path: rewrite(path, with_sample(path, np.nan), subtype="FLOAT"), "holds NaN or infinite samples"),
        (lambda path: rewrite(path, with_sample(path, np.inf), subtype="FLOAT"), "holds NaN or infinite samples"),
        (lambda path: rewrite(path, np.zeros((0, 2))), "holds no sound (0 samples)"),
        (lambda path: rewrite(path, soundfile.read(path)[0], 48_000), "is at 48000 Hz but the model is at 44100 Hz"),
        (lambda path: rewrite(path, np.zeros((FRAMES, 3))), "has 3 channels"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: shutil.copy(path, path.with_suffix(".flac")), "exists as bass.flac too"),
    ],
)
def test_a_fault_that_stops_training_makes_the_song_unusable(root, call, tmp_path, spoil, message):
    song = root / "train" / "b [live]"
    spoil(song / "bass.wav")
    with pytest.raises(InputError, match=r"bass\.wav"):
        [track.read("bass") for track in tracks(root, "train")]
    everything = found(root)
    assert {place for place in everything if any(u for u, _ in everything[place])} == {("train/b [live]", "bass.wav")}
    assert any(u and m.startswith(message) for u, m in everything["train/b [live]", "bass.wav"])
    assert not any("sum of the stems" in m for place in everything.values() for _, m in place)  # not all was decoded
    status, printed, _ = call("check-data", root, "--list", tmp_path / "list", "--set", "training.segment_seconds=0.1")
    assert status == 1
    row = next(line for line in printed.splitlines() if f"unusable: {message}" in line)
    assert "train/b [live]" in row
    assert "bass.wav" in row
    assert printed.splitlines()[-1].startswith("5 songs, 2")
    assert printed.splitlines()[-1].endswith("unusable: 1")
    assert (tmp_path / "list").read_text() == "b [live]\n"


def test_unequal_lengths_make_a_song_unusable(root):
    path = root / "test" / "t" / "drums.wav"
    rewrite(path, np.pad(soundfile.read(path)[0], ((0, 10), (0, 0))))
    ((place, findings),) = found(root).items()
    assert place[0] == "test/t"
    assert findings == [(True, "has 6000 samples but drums.wav has 6010: cut or pad the song's files to one length")]


def test_a_damaged_flac_makes_a_song_unusable(root):
    song = root / "train" / "a"
    sound, rate = audio.read(song / "other.wav")
    (song / "other.wav").unlink()
    audio.write(song / "other.flac", sound, rate)
    assert found(root) == {}
    content = bytearray((song / "other.flac").read_bytes())
    content[len(content) // 2] ^= 0x55
    (song / "other.flac").write_bytes(content)
    (((unusable, message),),) = found(root).values()
    assert unusable
    assert message.startswith("is damaged or cut short (decoding")


@pytest.mark.parametrize(
    ("name", "guess"),
    [("vocal.wav", "vocals.wav"), ("VOCALS.WAV", "vocals.wav"), ("vocals.mp3", "vocals.wav"), ("zzz.ogg", "")],
)
def test_a_misnamed_stem_is_reported_with_a_guess(root, name, guess):
    song = root / "train" / "a"
    (song / "vocals.wav").rename(song / name)
    (song / "._vocals.wav").write_bytes(b"a shadow of another system")
    (song / "song.json").write_text("{}")
    suggestion = f", perhaps meant as {guess}" if guess else ""
    assert found(root) == {
        ("train/a", "vocals.wav"): [(True, "is missing")],
        ("train/a", name): [(bool(guess), f"has an unknown name{suggestion}: not used")],
    }


def test_an_extra_file_is_only_a_note(root):
    shutil.copy(root / "train" / "a" / "drums.wav", root / "train" / "a" / "drum.wav")
    shutil.copy(root / "train" / "a" / "drums.wav", root / "train" / "lone.wav")
    assert found(root) == {
        ("train/a", "drum.wav"): [(False, "has an unknown name, perhaps meant as drums.wav: not used")],
        ("", "train/lone.wav"): [(False, "lies outside the songs' folders: not used")],
    }


def test_empty_and_missing_folders_are_unusable_songs(root):
    for stem in STEMS:
        (root / "train" / "a" / f"{stem}.wav").unlink()
    shutil.rmtree(root / "test" / "r")
    assert found(root) == {
        ("train/a", ""): [(True, "holds none of drums.wav, bass.wav, other.wav, vocals.wav, mixture.wav")],
        ("real/r", ""): [(True, f"is in splits.csv, but there is no folder {root / 'test' / 'r'}")],
    }


def test_a_song_in_two_splits_stays_in_the_test_split(root):
    """The training copy is unusable. Only the samples of the mixture are compared, not its format."""
    shutil.rmtree(root / "train" / "a")
    shutil.copytree(root / "test" / "t", root / "train" / "a")
    sound, rate = audio.read(root / "train" / "a" / "mixture.wav")
    (root / "train" / "a" / "mixture.wav").unlink()
    audio.write(root / "train" / "a" / "mixture.flac", sound, rate)
    assert found(root) == {("train/a", ""): [(True, "is a duplicate: it sounds the same as test/t")]}


def test_duplicates_within_a_split_and_a_stem_in_two_songs_are_notes(root):
    for song in ("a", "b [live]"):
        (root / "train" / song / "mixture.wav").unlink()
    shutil.copy(root / "train" / "a" / "bass.wav", root / "test" / "t" / "other.wav")
    (root / "test" / "t" / "mixture.wav").unlink()
    assert found(root) == {
        ("train/a", "bass.wav"): [(False, "is a duplicate: it sounds the same as test/t/other.wav")],
        ("test/t", "other.wav"): [(False, "is a duplicate: it sounds the same as train/a/bass.wav")],
    }
    for source in SOURCES:
        shutil.copy(root / "train" / "a" / f"{source}.wav", root / "train" / "b [live]")
    assert found(root)["train/b [live]", ""] == [(False, "is a duplicate: it sounds the same as train/a")]


# ---------------------------------------------------------------------------- notes


def test_silence_is_a_note_and_not_a_duplicate(root, call):
    for song in ("a", "b [live]"):
        rewrite(root / "train" / song / "vocals.wav", np.full((FRAMES, 2), 2.0**-16), subtype="PCM_24")
        (root / "train" / song / "mixture.wav").unlink()
    assert found(root) == {
        ("train/a", "vocals.wav"): [(False, "is silent")],
        ("train/b [live]", "vocals.wav"): [(False, "is silent")],
    }
    status, printed, _ = call("check-data", root, "--set", "training.segment_seconds=0.1")
    assert status == 0
    assert "note: is silent" in printed
    assert printed.splitlines()[-1] == "5 songs, 23 files, 2 findings; unusable: 0"


def test_clipped_runs_are_counted_across_blocks(root, monkeypatch):
    monkeypatch.setattr(audio, "BLOCK", 1_000)
    path = root / "train" / "a" / "drums.wav"
    sound = soundfile.read(path)[0]
    for start, length in ((0, 3), (500, 2), (999, 3), (1_998, 5), (3_000, 2_500), (5_998, 2)):
        sound[start : start + length, 0] = 1
    sound[100:103, 1] = -1
    rewrite(path, sound)
    (root / "train" / "a" / "mixture.wav").unlink()
    assert found(root) == {
        ("train/a", "drums.wav"): [(False, "is clipped: 5 runs of at least 3 samples at full scale")]
    }


def test_a_song_shorter_than_a_segment_is_a_note(root):
    shutil.rmtree(root / "train" / "a")
    make_song(root / "train" / "a", 4_409, 9)
    (finding,) = found(root)["train/a", ""]
    assert finding == (False, "lasts only 0.10 s: zeros fill the training segment of 0.1 s")
    shutil.rmtree(root / "train" / "a")
    make_song(root / "train" / "a", 4_410, 9)
    assert found(root) == {}


@pytest.mark.parametrize(("decibels", "reported"), [(-38, True), (-52, False)])
def test_stems_that_do_not_sum_to_the_mixture_are_a_note(root, monkeypatch, decibels, reported):
    monkeypatch.setattr(audio, "BLOCK", 1_024)
    path = root / "train" / "a" / "mixture.wav"
    rewrite(path, soundfile.read(path)[0] * (1 + 10 ** (decibels / 20)), subtype="PCM_24")
    findings = found(root)
    assert bool(findings) == reported
    if reported:
        ((unusable, message),) = findings["train/a", "mixture.wav"]
        assert not unusable
        assert message == "is not the sum of the stems: the difference is at -38.1 dB of the mixture"


def test_a_mixture_that_differs_in_one_channel_or_for_a_while_is_named_with_channel_and_time(tmp_path):
    """Faults such as MUSDB18's own list of errata holds; a whole song's −40 dB would hide each."""
    root = tmp_path / "set"
    for seed, name in enumerate(("right", "while", "twice", "quiet", "silent", "fine")):
        make_song(root / "train" / name, 9 * RATE, seed)
    make_song(root / "test" / "t", FRAMES, 9)

    def spoil(name, channels, places, decibels):
        path = root / "train" / name / "mixture.wav"
        sound = soundfile.read(path)[0]
        for start, end in places:
            sound[round(start * RATE) : round(end * RATE), channels] *= 1 + 10 ** (decibels / 20)
        rewrite(path, sound, subtype="PCM_24")

    spoil("right", [1], [(0, 9)], -39)
    spoil("while", [0, 1], [(2, 7)], -45)
    spoil("twice", [0], [(1, 1.5), (6, 8)], -45)
    spoil("silent", [0, 1], [(8, 9)], -400)  # by rounding alone
    quiet = root / "train" / "quiet"  # a song at the level of rounding
    for file in quiet.iterdir():
        rewrite(file, soundfile.read(file)[0] * 2.0**-10)
    sound = soundfile.read(root / "train/silent/mixture.wav")[0]
    sound[-RATE:] = 0
    rewrite(root / "train/silent/mixture.wav", sound)
    level = r"the difference is at (-[\d.]+) dB of the mixture there"
    twice = r"from 0:01\.0 to 0:01\.5, from 0:06\.0 to 0:08\.0"
    expected = {
        "right": rf"is not the sum of the stems in the right channel: {level}",
        "while": rf"is not the sum of the stems from 0:02\.0 to 0:07\.0: {level}",
        "twice": rf"is not the sum of the stems in the left channel {twice}: {level}",
        "silent": r"is not the sum of the stems from 0:08\.0 to 0:09\.0: it is silent there",
    }
    findings = found(root)
    assert set(findings) == {(f"train/{name}", "mixture.wav") for name in expected}
    for name, pattern in expected.items():
        ((unusable, message),) = findings[f"train/{name}", "mixture.wav"]
        assert not unusable
        matched = re.fullmatch(pattern, message)
        assert matched, message
        if matched.groups():
            assert float(matched[1]) == pytest.approx(-39 if name == "right" else -45, abs=0.2)


def test_a_mixture_that_is_clipped_or_rounded_is_the_sum_of_its_stems(root):
    for stem in STEMS:
        path = root / "train" / "a" / f"{stem}.wav"
        rewrite(path, np.clip((6 if stem == "mixture" else 2.4) * soundfile.read(path)[0], -1, 1), subtype="PCM_24")
        quiet = root / "train" / "b [live]" / f"{stem}.wav"
        rewrite(quiet, np.round(soundfile.read(quiet)[0] / 500 * 2**15) / 2**15)
    path = root / "train" / "a" / "mixture.wav"
    rewrite(path, np.clip(sum(soundfile.read(root / f"train/a/{source}.wav")[0] for source in SOURCES) * 1.0, -1, 1))
    assert {message for findings in found(root).values() for _, message in findings if "sum" in message} == set()


# ---------------------------------------------------------------------------- the data set and the command


def test_pairs_are_checked_in_split_folders_and_in_a_flat_folder(tmp_path):
    for seed, song in enumerate(("train/a", "train/b", "val/v", "test/t")):
        make_pair(tmp_path / "sorted" / song, FRAMES, seed)
    assert found(tmp_path / "sorted") == {}
    shutil.copy(tmp_path / "sorted/val/v/in.wav", tmp_path / "sorted/train/a/in.wav")
    (tmp_path / "sorted/train/b/out.wav").rename(tmp_path / "sorted/train/b/output.wav")
    assert found(tmp_path / "sorted") == {
        ("train/a", ""): [(True, "is a duplicate: it sounds the same as valid/v")],
        ("train/b", "out.wav"): [(True, "is missing")],
        ("train/b", "output.wav"): [(True, "has an unknown name, perhaps meant as out.wav: not used")],
    }
    for seed, song in enumerate(("Abend", "Gale", "Duna")):
        make_pair(tmp_path / "flat" / song, FRAMES, seed)
    (tmp_path / "flat" / "notes").mkdir()
    ((song, _),) = found(tmp_path / "flat")
    assert song.endswith("/notes")
    assert found(tmp_path / "flat") == {(song, ""): [(True, "holds none of in.wav, out.wav")]}


@pytest.mark.parametrize("rest", ["instrumental", "accompaniment", "no_vocals", "other"])
def test_songs_in_two_stems_are_checked(tmp_path, rest):
    for seed, song in enumerate(("train/a", "train/b", "train/c", "val/v", "test/t")):
        make_pair(tmp_path / song, FRAMES, seed)
        mixture, target = (soundfile.read(tmp_path / song / name)[0] for name in ("in.wav", "out.wav"))
        rewrite(tmp_path / song / "vocals.wav", mixture - target)
        (tmp_path / song / "in.wav").rename(tmp_path / song / "mixture.wav")
        (tmp_path / song / "out.wav").rename(tmp_path / song / f"{rest}.wav")
    (tmp_path / "train/c/mixture.wav").unlink()
    assert found(tmp_path) == {}
    shutil.copy(tmp_path / "train/b/vocals.wav", tmp_path / "train/a/vocals.wav")
    (tmp_path / "train/c/vocals.wav").unlink()
    findings = found(tmp_path)
    (finding,) = findings["train/a", "mixture.wav"]
    assert finding[1].startswith("is not the sum of the stems: ")
    assert findings["train/c", "mixture.wav"] == [(True, "is missing")]


def test_a_clean_set_passes_and_a_list_is_not_overwritten(root, call, tmp_path):
    arguments = ("check-data", root, "--list", tmp_path / "list", "--set", "training.segment_seconds=0.1")
    status, printed, said = call(*arguments)
    assert (status, printed) == (0, "5 songs, 25 files, 0 findings; unusable: 0\n")
    assert "check" in said  # the bar
    assert (tmp_path / "list").read_text() == ""
    (tmp_path / "list").write_text("mine\n")
    status, printed, said = call(*arguments)
    assert (status, printed) == (2, "")
    assert "list exists: choose another file, or pass --overwrite" in said
    assert (tmp_path / "list").read_text() == "mine\n"
    assert call(*arguments, "--overwrite")[0] == 0
    assert (tmp_path / "list").read_text() == ""


def test_a_missing_folder_and_one_without_songs_are_refused(call, tmp_path):
    for root, sentence in ((tmp_path / "none", "none does not exist"), (tmp_path, "holds no songs")):
        status, _, said = call("check-data", root)
        assert status == 2
        assert sentence in said
        assert "Traceback" not in said


def test_train_excludes_the_songs_of_a_list(root, call, tmp_path, monkeypatch):
    from twinsep.training import loop

    seen = []
    monkeypatch.setattr(loop, "train", lambda config, *_, **__: seen.append(config.data.exclude))
    (tmp_path / "list").write_text("# found\n\nb [live]\n")
    arguments = ("train", "--preset", "tiny", "--data", root, "--out", tmp_path / "run", "--exclude")
    assert call(*arguments, tmp_path / "list", "--set", "data.exclude=[a]")[0] == 0
    assert seen == [("b [live]",)]
    status, _, said = call(*arguments, tmp_path / "none")
    assert status == 2
    assert "none: No such file or directory" in said
    assert not (tmp_path / "run").exists()
