"""``twinsep separate`` on a corpus of real-world formats: each song is separated or refused in one sentence."""

import contextlib
import errno
import json
import math
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers.corpus import BAD, GOOD, LONG_NAME, RATE, music, wave

from twinsep import audio, cli
from twinsep.audio.formats import MEDIA_EXTENSIONS
from twinsep.config import preset
from twinsep.errors import InputError, Interrupted
from twinsep.separation import batch, file
from twinsep.separation.batch import SeparationOptions
from twinsep.separation.file import Encoding
from twinsep.separation.overlap_add import ChunkGrid, Chunking
from twinsep.separation.separator import Separator

FLOAT = Encoding("FLOAT")


def louder_middle(x):
    """An estimate that differs from the mixture: the common part of both channels is halved."""
    return (x - 0.5 * x.mean(1, keepdims=True))[:, None]


@pytest.fixture
def separate(tmp_path, monkeypatch):
    """separate(songs, model=…, **options) into ``out``; no network."""

    def separate(given, model=lambda x: x[:, None], config=None, **options):
        separator = Separator(model, config or preset("tiny"), ChunkGrid(4096))
        monkeypatch.setattr(batch, "_load", lambda *_: separator)
        monkeypatch.setattr(batch, "_read_config", lambda *_: separator.config)
        given = given if isinstance(given, list) else [given]
        batch.separate_files(given, SeparationOptions(**({"out": tmp_path / "out"} | options)))
        return tmp_path / "out"

    return separate


def files(folder):
    return sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.exists() else []


def assert_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert ";" in text or ":" in text, text  # what is wrong, and what to do


# ---------------------------------------------------------------------------- the corpus


def test_the_corpus_has_at_least_sixty_songs():
    assert len(GOOD) + len(BAD) >= 60


@pytest.mark.parametrize("name", GOOD)
def test_an_identity_model_returns_the_song_and_stems_add_up(separate, tmp_path, name):
    (tmp_path / "in").mkdir()
    song = tmp_path / "in" / name
    GOOD[name](song)
    before = song.read_bytes()
    out = separate(song, two_stems="vocals", extension="wav", encoding=FLOAT)
    mixture, rate = audio.read(song)
    (folder,) = out.iterdir()
    assert folder.name == (name.removesuffix(song.suffix) if song.suffix.lower() in MEDIA_EXTENSIONS else name)
    instrumental, vocals = (audio.read(folder / f"{stem}.wav") for stem in ("instrumental", "vocals"))
    assert instrumental[1] == vocals[1] == rate
    assert instrumental[0].shape == vocals[0].shape == mixture.shape
    peak = max(1, np.abs(mixture).max())
    assert np.abs(instrumental[0] - mixture).max() <= 1e-6 * peak
    assert np.abs(instrumental[0] + vocals[0] - mixture).max() <= 1e-6
    assert song.read_bytes() == before


@pytest.mark.parametrize("name", ["44100 Hz.wav", "mono 8000 Hz.wav", "96000 Hz.wav", "stereo.mp3", "2 samples.wav"])
def test_stems_of_a_real_filter_add_up(separate, tmp_path, name):
    GOOD[name](tmp_path / name)
    out = separate(tmp_path / name, louder_middle, two_stems="vocals", extension="wav", encoding=FLOAT)
    mixture, _ = audio.read(tmp_path / name)
    stems = [audio.read(path)[0] for path in files(out)]
    assert np.abs(sum(stems) - mixture).max() <= 1e-6
    assert np.abs(stems[1]).max() > 0.01


@pytest.mark.parametrize("name", BAD)
def test_a_bad_song_is_refused_and_leaves_no_file(separate, tmp_path, name):
    maker, sentence = BAD[name]
    maker(tmp_path / name)
    with pytest.raises(InputError, match=sentence) as caught:
        separate(tmp_path / name)
    assert_sentence(caught)
    assert name.replace("\n", "\\n") in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "made", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_16", "PCM_24", 2**-24),
        ("a.wav", "FLOAT", "FLOAT", 1e-6),
        ("a.flac", "PCM_16", "PCM_24", 2**-24),
        ("a.mp3", "MPEG_LAYER_III", "MPEG_LAYER_III", 0.02),
        ("a.ogg", "VORBIS", "VORBIS", 0.05),
    ],
)
def test_the_songs_own_format_is_kept(separate, tmp_path, name, made, subtype, tolerance):
    import soundfile

    container = name[2:].upper()
    wave(tmp_path / name, subtype=made, container=container)
    (written,) = files(separate(tmp_path / name))
    assert written.name == f"instrumental{(tmp_path / name).suffix}"
    assert (soundfile.info(written).format, soundfile.info(written).subtype) == (container, subtype)
    (x, _), (y, _) = audio.read(tmp_path / name), audio.read(written)
    assert x.shape == y.shape
    assert np.abs(x - y).max() <= tolerance + 1e-6


def test_stems_become_wav_if_the_songs_format_lacks_the_sample_type(separate, tmp_path):
    wave(tmp_path / "a.mp3", subtype="MPEG_LAYER_III", container="MP3")
    wave(tmp_path / "b.flac", container="FLAC")
    out = separate([tmp_path / "a.mp3", tmp_path / "b.flac"], encoding=FLOAT)
    assert [path.name for path in files(out)] == ["instrumental.wav"] * 2
    separate(tmp_path / "b.flac", encoding=Encoding("PCM_16"), out=tmp_path / "other")
    (kept,) = files(tmp_path / "other")
    assert kept.suffix == ".flac"


def test_a_song_that_changes_while_it_is_read_is_refused(separate, tmp_path, monkeypatch):
    scan = audio.verify
    for waveform, rate in [
        (music(samples=8000), RATE),
        (music(samples=10_000), RATE),
        (music(1), RATE),
        (music(), 48_000),
    ]:

        def scan_and_replace(song, waveform=waveform, rate=rate, **options):
            found = scan(song, **options)
            wave(tmp_path / "a.wav", waveform, rate=rate)
            return found

        wave(tmp_path / "a.wav")
        monkeypatch.setattr(audio, "verify", scan_and_replace)
        with pytest.raises(InputError, match="has changed while it was read"):
            separate(tmp_path / "a.wav")
        assert files(tmp_path / "out") == []


@pytest.mark.parametrize(("subtype", "steps"), [("PCM_16", 2**15), ("PCM_24", 2**23)])
def test_stems_add_up_to_the_precision_of_the_file(separate, tmp_path, subtype, steps):
    wave(tmp_path / "a.wav", rate=48_000)
    out = separate(tmp_path / "a.wav", louder_middle, two_stems="vocals", encoding=Encoding(subtype))
    total = sum(audio.read(path)[0].astype(np.float64) for path in files(out))
    assert np.abs(total - audio.read(tmp_path / "a.wav")[0]).max() <= 1.01 / steps


def test_many_channels_are_separated_in_pairs(separate, tmp_path):
    for channels in (3, 6):
        wave(tmp_path / "in.wav", music(channels), subtype="FLOAT")
        heard = []

        def model(x, heard=heard):
            heard.append(x.shape[:2])
            return louder_middle(x)

        out = separate(tmp_path / "in.wav", model, pairs=True, overwrite=True)
        x, y = (audio_of_many(path) for path in (tmp_path / "in.wav", out / "in/instrumental.wav"))
        assert y.shape == x.shape
        assert set(heard) == {((channels + 1) // 2, 2)}
        assert np.abs(y[:2] - louder_middle(x[None, :2])[0, 0]).max() <= 1e-6
        if channels == 3:  # the last by itself, as mono
            assert np.abs(y[2] - 0.5 * x[2]).max() <= 1e-6


def audio_of_many(path):
    import soundfile

    return soundfile.read(path, always_2d=True)[0].T


# ---------------------------------------------------------------------------- places


def test_unwritable_paths_and_bad_templates_are_refused(separate, tmp_path):
    wave(tmp_path / "a.wav")
    (tmp_path / "file").write_text("x")
    for options, sentence in [
        ({"out": tmp_path / "file"}, "is a file where a folder is needed"),
        ({"out": tmp_path / "file" / "deeper"}, "is a file where a folder is needed"),
        ({"out": tmp_path / ("x" * 300)}, "File name too long"),
        ({"filename": "{track:d}.{ext}"}, "has the field {track:d}"),
        ({"filename": "{track!z}.{ext}"}, "has the field {track!z}"),
        ({"filename": "{track}" * 300 + ".{ext}"}, "File name too long"),
        ({"filename": "{artist}.{ext}"}, "has the field {artist}"),
        ({"filename": "{track"}, "lone brace"),
        ({"filename": "../{stem}.{ext}"}, "is not a path below --out"),
        ({"filename": "/tmp/{stem}.{ext}"}, "is not a path below --out"),
        ({"filename": "{track}/"}, "is not a path below --out"),
        ({"filename": "{track}.{ext}", "two_stems": "vocals"}, "keep {stem}"),
        ({"filename": "{track}.{ext}", "out": tmp_path}, "is one of the songs"),
        ({"filename": "{track}.aiff"}, "does not end in .{ext}"),
        ({"two_stems": "drums"}, "no stem 'drums': choose from"),
        ({"stem": "vocals", "two_stems": "vocals"}, "exclude each other"),
        ({"extension": "mp3", "encoding": Encoding("PCM_16")}, "MP3 has no 16-bit samples: choose --wav"),
        ({"extension": "flac", "encoding": FLOAT}, "FLAC has no floating-point samples: choose --wav"),
    ]:
        with pytest.raises(InputError) as caught:
            separate(tmp_path / "a.wav", **options)
        assert sentence in str(caught.value)
        assert_sentence(caught)
    assert files(tmp_path) == [tmp_path / "a.wav", tmp_path / "file"]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk():
    """No file may grow past 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("extension", ["wav", "flac", "mp3"])
def test_a_full_disk_leaves_no_file(separate, tmp_path, extension):
    wave(tmp_path / "a.flac", np.zeros((2, 200_000)), container="FLAC")
    loud = np.random.default_rng(0).uniform(-0.5, 0.5, 100_000).astype(np.float32)
    with pytest.raises(InputError, match="File too large; free some space") as caught:
        separate(tmp_path / "a.flac", lambda x: np.resize(loud, x.shape)[:, None], extension=extension)
    assert_sentence(caught)
    assert files(tmp_path) == [tmp_path / "a.flac"]


def test_files_are_replaced_only_with_overwrite(separate, tmp_path):
    wave(tmp_path / "a.wav")
    out = separate(tmp_path / "a.wav")
    (out / "a/instrumental.wav").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        separate(tmp_path / "a.wav")
    assert (out / "a/instrumental.wav").read_bytes() == b"mine"
    separate(tmp_path / "a.wav", overwrite=True)
    assert audio.info(out / "a/instrumental.wav").frames == 9000


def test_template_and_recursion_decide_the_paths_of_stems(separate, tmp_path):
    for name in ("in/one.wav", "in/deep/two.flac", "in/.hidden.wav", "in/deep/._two.flac", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        wave(tmp_path / name)
    out = separate(tmp_path / "in", filename="{stem}s/{track}.{ext}")
    assert [path.relative_to(out).as_posix() for path in files(out)] == ["instrumentals/one.wav"]
    out = separate(tmp_path / "in", recursive=True, two_stems="vocals", out=tmp_path / "all")
    assert files(tmp_path / "all") == [
        tmp_path / "all" / name
        for name in ("deep/two/instrumental.flac", "deep/two/vocals.flac", "one/instrumental.wav", "one/vocals.wav")
    ]
    for _ in range(2):  # stems among the songs are no songs the second time
        separate(tmp_path / "in", recursive=True, out=tmp_path / "in/out", overwrite=True)
    assert len(files(tmp_path / "in/out")) == 2
    separate([tmp_path / "in/one.wav", tmp_path / "in/../in/one.wav"], out=tmp_path / "once")  # one song by two names
    for name in ("..wav", "...wav"):
        wave(tmp_path / name)
        separate(tmp_path / name, out=tmp_path / "dots")
    assert len(files(tmp_path / "once")) == 1
    assert len(files(tmp_path / "dots")) == 2
    shutil.rmtree(tmp_path / "in/out")
    (tmp_path / "none" / "deep").mkdir(parents=True)
    with pytest.raises(InputError, match="--recursive"):
        separate(tmp_path / "none")
    (tmp_path / "in/one.flac").write_bytes((tmp_path / "in/one.wav").read_bytes())
    with pytest.raises(InputError, match=r"written more than once: keep \{stem\}, and \{track\}"):
        separate(tmp_path / "in", extension="wav", filename="{stem}.{ext}", out=tmp_path / "third")
    assert not (tmp_path / "third").exists()


def names(folder):
    return [path.relative_to(folder).as_posix() for path in files(folder)]


def test_songs_of_one_name_each_get_a_place(separate, tmp_path, capsys):
    for name in ("A/song.wav", "B/song.wav", "B/other.wav", "B/Song.flac", "C/song (2).wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        wave(tmp_path / name)
    separate([tmp_path / "A", tmp_path / "B/other.wav", tmp_path / "B/song.wav"], out=tmp_path / "folders")
    assert names(tmp_path / "folders") == [f"{name}/instrumental.wav" for name in ("A/song", "B/song", "other")]
    said = capsys.readouterr().err
    assert f"{tmp_path}/B/song.wav: its stems are named B/song, because another song has the same name" in said
    separate([tmp_path / "B", tmp_path / "C"], extension="wav", out=tmp_path / "numbers")
    tracks = ("Song.flac", "other", "song (2)", "song.wav")
    assert names(tmp_path / "numbers") == [f"{track}/instrumental.wav" for track in tracks]
    (tmp_path / "D").mkdir()
    with pytest.raises(InputError, match=r"2 of 3 songs failed, see above: D, none\.wav"):
        separate([tmp_path / "D", tmp_path / "A", tmp_path / "none.wav"], out=tmp_path / "rest")
    assert names(tmp_path / "rest") == ["song/instrumental.wav"]


def test_names_of_stems_do_not_depend_on_the_order_or_on_who_else_is_there(separate, tmp_path):
    """Else ``--skip-existing`` would take one song's stems for another's."""
    given = [tmp_path / name for name in ("A/cd1/01.wav", "B/cd1/01.wav", "B/a.wav", "B/a.aiff", "B/x.wav", "B/X.wav")]
    for number, song in enumerate(given):
        song.parent.mkdir(parents=True, exist_ok=True)
        wave(song, music(samples=300 + number))
    tracks = ("A/cd1/01", "B/cd1/01", "X (1)", "a.aiff", "a.wav", "x (2)")
    for number, songs in enumerate((given, given[::-1])):
        separate(songs, out=tmp_path / str(number), extension="wav")
        assert names(tmp_path / str(number)) == [f"{track}/instrumental.wav" for track in tracks]
        assert audio.info(tmp_path / str(number) / "B/cd1/01/instrumental.wav").frames == 301
    for song in (given[1], given[3], given[5]):  # by themselves they have names that none had before
        separate(song, out=tmp_path / "0", extension="wav")
    assert len(names(tmp_path / "0")) == len(given) + 3


@pytest.mark.parametrize(
    ("name", "track"),
    [
        ("Triviul feat. The Fiend - Widow", "Triviul feat. The Fiend - Widow"),
        ("M.E.R.C. Music - Knockout", "M.E.R.C. Music - Knockout"),
        ("M.E.R.C. Music - Knockout.flac", "M.E.R.C. Music - Knockout"),
        ("Mix v1.2", "Mix v1.2"),
        ("a.wav.bak", "a.wav.bak"),
        ("Take 1.MP2", "Take 1"),
    ],
)
def test_a_dot_in_a_name_ends_it_only_before_an_extension_of_sound(separate, tmp_path, name, track):
    wave(tmp_path / name, container="FLAC" if name.endswith("flac") else "WAV")
    assert {path.parent.name for path in files(separate(tmp_path / name))} == {track}
    separate(tmp_path / name, filename="{track} ({stem}).{ext}", out=tmp_path / "flat")
    assert [path.name.removesuffix(path.suffix) for path in files(tmp_path / "flat")] == [f"{track} (instrumental)"]


def test_names_that_the_file_system_refuses_are_replaced_and_said(separate, tmp_path, monkeypatch, capsys):
    given = ["AC:DC?.wav", "aux.wav", "end...wav", "good.wav", "AC_DC_.wav"]
    for name in given:
        wave(tmp_path / name)
    songs = [tmp_path / name for name in given]
    separate(songs, out=tmp_path / "free")
    assert {path.parent.name for path in files(tmp_path / "free")} == {"AC:DC?", "aux", "end..", "good", "AC_DC_"}
    assert {path.name for path in tmp_path.iterdir()} == {*given, "free"}  # the probe is gone
    capsys.readouterr()
    touch = Path.touch

    def of_fat(path, *arguments, **options):
        if set(path.name) & set('<>:"|?*'):
            raise OSError(errno.EINVAL, "Invalid argument")
        return touch(path, *arguments, **options)

    monkeypatch.setattr(Path, "touch", of_fat)
    separate(songs, out=tmp_path / "fat")
    expected = {"AC_DC_ (1)", "AC_DC_ (2)", "aux_", "end", "good"}
    assert {path.parent.name for path in files(tmp_path / "fat")} == expected
    said = capsys.readouterr().err
    assert f"{tmp_path}/AC:DC?.wav: its stems are named AC_DC_, because the file system refuses its own name" in said
    assert "good.wav: its stems are named" not in said


def test_stems_lie_beside_their_songs_and_are_no_songs(separate, tmp_path):
    for name in ("one.wav", "deep/two.flac"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        wave(tmp_path / "in" / name)
    options = {"out": Path("{folder}/stems"), "recursive": True, "two_stems": "vocals"}
    for _ in range(2):
        separate(tmp_path / "in", **options, overwrite=True)
    assert names(tmp_path / "in") == [
        "deep/stems/two/instrumental.flac",
        "deep/stems/two/vocals.flac",
        "deep/two.flac",
        "one.wav",
        "stems/one/instrumental.wav",
        "stems/one/vocals.wav",
    ]
    separate(tmp_path / "in/one.wav", out=Path("{folder}"), filename="{track} ({stem}).{ext}")
    assert (tmp_path / "in/one (instrumental).wav").exists()


def test_an_excerpt_is_that_part_of_the_song_under_a_name_of_its_own(separate, tmp_path):
    wave(tmp_path / "a.wav", music(samples=3 * RATE), subtype="FLOAT")
    whole = audio.read(tmp_path / "a.wav")[0]
    for start, length, name, part in [
        (0.5, 1.0, "a (0.5-1.5 s)", slice(RATE // 2, 3 * RATE // 2)),
        (0.0, 0.25, "a (0-0.25 s)", slice(0, RATE // 4)),
        (2.0, None, "a (from 2 s)", slice(2 * RATE, None)),
        (2.0, 9.0, "a (2-11 s)", slice(2 * RATE, None)),
    ]:
        out = separate(tmp_path / "a.wav", excerpt=file.Excerpt(start, length))
        assert np.abs(audio.read(out / name / "instrumental.wav")[0] - whole[:, part]).max() <= 1e-6
    with pytest.raises(InputError, match=r"a\.wav lasts 3\.00 s: choose a --start before its end"):
        separate(tmp_path / "a.wav", excerpt=file.Excerpt(3.0))
    for wrong in ((-1.0, None), (0.0, 0.0), (math.nan, None), (0.0, math.inf)):
        with pytest.raises(InputError, match=r"--(start|length)"):
            file.Excerpt(*wrong)


def test_a_film_gets_each_stem_as_its_sound(separate, tmp_path):
    import av

    def pictures(path):
        with av.open(str(path)) as film:
            return [
                (float(packet.pts * packet.time_base), bytes(packet)) for packet in film.demux(video=0) if packet.size
            ]

    for name in ("film.mp4", "film.mkv"):
        GOOD[name](tmp_path / name)
        out = separate(tmp_path / name, louder_middle, two_stems="vocals", remux=True, filename="{track} {stem}.{ext}")
        for stem in ("vocals", "instrumental"):
            film = out / f"film {stem}{Path(name).suffix}"
            assert pictures(film) == pictures(tmp_path / name)
            sound, expected = audio.read(film)[0], audio.read(out / f"film {stem}.wav")[0]
            assert abs(sound.shape[1] - expected.shape[1]) <= 1024
            n = min(sound.shape[1], expected.shape[1])
            error = np.abs(sound[:, :n] - expected[:, :n]).max()
            assert error <= (2**-22 if name.endswith("mkv") else 0.03)
        shutil.rmtree(out)
    wave(tmp_path / "a.wav")
    with pytest.raises(InputError, match=r"a\.wav has no picture to put the stems under: leave out --remux"):
        separate(tmp_path / "a.wav", remux=True)


def test_stems_in_one_file_name_their_streams(separate, tmp_path):
    from mutagen.flac import FLAC
    from mutagen.mp4 import MP4

    wave(tmp_path / "a.flac", container="FLAC")
    tagged = FLAC(tmp_path / "a.flac")
    tagged["title"] = "Song"
    tagged.save()
    four = preset("tiny").override({"model": {"targets": ["vocals", "drums", "bass", "other"]}})

    def quarters(x):
        return np.stack([0.1 * x, 0.2 * x, 0.3 * x, 0.35 * x], 1)

    out = separate(tmp_path / "a.flac", quarters, four, extension="stem.mp4")
    assert names(out) == ["a.stem.mp4"]
    mixture = audio.read(tmp_path / "a.flac")[0]
    for number, gain in enumerate((1, 0.1, 0.2, 0.3, 0.4)):
        sound, rate = audio.read(out / "a.stem.mp4", stream=number)
        assert (rate, sound.shape) == (RATE, mixture.shape)
        assert np.abs(sound - gain * mixture).max() < 0.05
        assert np.square(sound - gain * mixture).mean() < 0.05 * np.square(gain * mixture).mean()
    content = (out / "a.stem.mp4").read_bytes()
    text = content[content.index(b"stem{") + 4 :]
    described = json.JSONDecoder().raw_decode(text[: text.rindex(b"}") + 1].decode("latin-1"))[0]
    assert [stem["name"] for stem in described["stems"]] == ["Vocals", "Drums", "Bass", "Other"]
    assert MP4(out / "a.stem.mp4")["\xa9nam"] == ["Song"]
    separate(tmp_path / "a.flac", extension="stem.mp4", skip_existing=True)
    with pytest.raises(InputError, match=r"STEM\.MP4 has no 16-bit samples"):
        separate(tmp_path / "a.flac", extension="stem.mp4", encoding=Encoding("PCM_16"))


def test_stems_as_m4a(separate, tmp_path):
    wave(tmp_path / "a.wav", 3 * music(samples=50_037))
    out = separate(tmp_path / "a.wav", extension="m4a")
    sound, mixture = audio.read(out / "a/instrumental.m4a")[0], audio.read(tmp_path / "a.wav")[0]
    assert sound.shape == mixture.shape
    assert np.square(sound - mixture).mean() < 0.01 * np.square(mixture).mean()
    first = (out / "a/instrumental.m4a").read_bytes()
    separate(tmp_path / "a.wav", extension="m4a", overwrite=True)
    assert (out / "a/instrumental.m4a").read_bytes() == first
    wave(tmp_path / "b.wav", rate=176_400)
    with pytest.raises(InputError, match=r"AAC does not take 2 channels at 176400 Hz; choose \.wav or \.flac"):
        separate(tmp_path / "b.wav", extension="m4a")
    assert names(out) == ["a/instrumental.m4a"]


def test_options_decide_which_stems_are_written(separate, tmp_path):
    wave(tmp_path / "a.wav")
    four = preset("tiny").override({"model": {"targets": ["vocals", "drums", "bass", "other"]}})

    def quarters(x):
        return np.stack([0.1 * x, 0.2 * x, 0.3 * x, 0.35 * x], 1)

    def written(model=louder_middle, config=None, **options):
        out = separate(tmp_path / "a.wav", model, config, overwrite=True, **options)
        found = {path.stem: audio.read(path)[0] for path in files(out)}
        for path in files(out):
            path.unlink()
        return found

    assert set(written()) == {"instrumental"}
    assert set(written(stem="vocals")) == {"vocals"}
    assert set(written(two_stems="instrumental")) == {"instrumental", "vocals"}
    stems, mixture = written(quarters, four), audio.read(tmp_path / "a.wav")[0]
    assert set(stems) == {"vocals", "drums", "bass", "other"}
    assert np.abs(sum(stems.values()) - mixture).max() <= 2**-22  # the last is what is left, not 0.35
    two = written(quarters, four, two_stems="drums")
    assert set(two) == {"drums", "no_drums"}
    assert np.abs(two["no_drums"] - 0.8 * mixture).max() <= 2**-22
    assert np.abs(written(quarters, four, stem="instrumental")["instrumental"] - 0.9 * mixture).max() <= 2**-22


# ---------------------------------------------------------------------------- full scale


def test_clip_modes_beyond_full_scale(separate, tmp_path, capsys):
    wave(tmp_path / "a.wav", 4 * music(), subtype="FLOAT")
    peak = np.abs(4 * music()).max()
    mixture = audio.read(tmp_path / "a.wav")[0]

    def written(clip, subtype):
        out = separate(
            tmp_path / "a.wav",
            louder_middle,
            two_stems="vocals",
            encoding=Encoding(subtype, clip_mode=clip),
            overwrite=True,
        )
        return [audio.read(path)[0] for path in files(out)], capsys.readouterr().err

    for clip in file.CLIP_MODES:  # floating point has the room
        stems, said = written(clip, "FLOAT")
        assert np.abs(sum(stems) - mixture).max() <= 1e-6
        assert "full scale" not in said
    stems, said = written("clamp", "PCM_24")
    assert max(np.abs(stem).max() for stem in stems) <= 1
    assert "beyond full scale were clamped" in said
    stems, said = written("rescale", "PCM_24")
    assert "all stems were attenuated by" in said
    total = sum(stems)
    factor = total.ravel() @ mixture.ravel() / (mixture.ravel() @ mixture.ravel())
    assert 1 / peak <= factor < 1
    assert np.abs(total - factor * mixture).max() <= 2**-21
    with pytest.raises(InputError, match="--clip-mode none refuses"):
        written("none", "PCM_24")


def test_loudness_is_unchanged(separate, tmp_path, capsys):
    wave(tmp_path / "a.wav", 1e-3 * music())
    for clip in file.CLIP_MODES:
        (path,) = files(separate(tmp_path / "a.wav", encoding=Encoding(clip_mode=clip), overwrite=True))
        assert np.abs(audio.read(path)[0] - audio.read(tmp_path / "a.wav")[0]).max() <= 2**-22
    assert "quieter" not in capsys.readouterr().err


# ---------------------------------------------------------------------------- batches


def test_a_batch_continues_after_a_broken_song(separate, tmp_path, capsys):
    given = [tmp_path / name for name in ("a.wav", "text.wav", "missing.wav", "b.wav")]
    wave(given[0])
    BAD["text.wav"][0](given[1])
    wave(given[3])
    with pytest.raises(InputError, match=r"2 of 4 songs failed, see above: text\.wav, missing\.wav"):
        separate(given)
    said = capsys.readouterr().err
    assert "text.wav cannot be read" in said
    assert "2 of 4 songs separated" in said
    assert [path.parent.name for path in files(tmp_path / "out")] == ["a", "b"]


def test_a_second_run_passes_over_songs_that_are_done(separate, tmp_path, monkeypatch, capsys):
    """Twenty songs, one of them broken: it is told both times, no name shifts, and nothing else is decoded again."""
    (tmp_path / "in").mkdir()
    for number in range(20):
        wave(tmp_path / f"in/{number:02}.wav", music(samples=2000))
    (tmp_path / "in/10.wav").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"1 of 20 songs failed, see above: 10\.wav"):
        separate(tmp_path / "in", skip_existing=True)
    before = {path: path.stat().st_mtime_ns for path in files(tmp_path / "out")}
    assert names(tmp_path / "out") == [f"{number:02}/instrumental.wav" for number in range(20) if number != 10]
    capsys.readouterr()
    opened = []
    verify = audio.verify
    monkeypatch.setattr(audio, "verify", lambda path, **options: (opened.append(path.name), verify(path, **options))[1])

    def no_model(*_):
        raise AssertionError("loaded, although nothing is to separate")

    with monkeypatch.context() as patched:
        patched.setattr(batch, "_load", no_model)
        patched.setattr(batch, "_read_config", lambda *_: preset("tiny"))
        options = SeparationOptions(out=tmp_path / "out", skip_existing=True)
        with pytest.raises(InputError, match=r"1 of 20 songs failed, see above: 10\.wav"):
            batch.separate_files([tmp_path / "in"], options)
        assert opened == ["10.wav"]
        assert "0 of 20 songs separated; 19 were separated before" in capsys.readouterr().err
        (tmp_path / "in/10.wav").unlink()
        batch.separate_files([tmp_path / "in"], options)  # status 0
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path / "out")} == before
    separate(tmp_path / "in/00.wav", skip_existing=True, two_stems="vocals")  # writes the stem that is missing
    assert names(tmp_path / "out")[:2] == ["00/instrumental.wav", "00/vocals.wav"]
    with pytest.raises(InputError, match=r"instrumental\.wav exists; pass"):
        separate(tmp_path / "in/01.wav", skip_existing=True, two_stems="vocals", encoding=Encoding(clip_mode="rescale"))
    with pytest.raises(InputError, match="exclude each other"):
        separate(tmp_path / "in", skip_existing=True, overwrite=True)


def test_existing_stems_are_found_before_the_song_is_decoded(separate, tmp_path, monkeypatch):
    wave(tmp_path / "a.wav")
    separate(tmp_path / "a.wav")
    monkeypatch.setattr(audio, "verify", None)
    with pytest.raises(InputError, match=r"instrumental\.wav exists; .* --skip-existing to pass over"):
        separate(tmp_path / "a.wav")


def test_a_single_broken_song_is_named_once(separate, tmp_path, capsys):
    with pytest.raises(InputError, match=r"missing\.wav does not exist"):
        separate(tmp_path / "missing.wav")
    assert "missing" not in capsys.readouterr().err


def test_estimates_of_nan_end_in_one_sentence(separate, tmp_path):
    wave(tmp_path / "a.wav")
    with pytest.raises(InputError, match="use another checkpoint"):
        separate(tmp_path / "a.wav", lambda x: np.full_like(x, np.nan)[:, None])
    assert files(tmp_path / "out") == []


def test_ctrl_c_says_what_is_finished_and_leaves_nothing_else(separate, tmp_path):
    for name in "ab":
        wave(tmp_path / f"{name}.wav", music(samples=40_000))
    calls = []

    def model(x):
        calls.append(x)
        if len(calls) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return x[:, None]

    with pytest.raises(Interrupted, match=r"1 of 2 songs are finished \(a\.wav\)"):
        separate([tmp_path / "a.wav", tmp_path / "b.wav"], model)
    assert files(tmp_path / "out") == [tmp_path / "out/a/instrumental.wav"]
    assert not (tmp_path / "out/b").exists()


def test_json_events_of_a_batch(separate, tmp_path, capsys):
    wave(tmp_path / "a.wav")
    with contextlib.suppress(InputError):
        separate([tmp_path / "a.wav", tmp_path / "missing.wav"], as_json=True)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start"
    assert {"progress", "written", "failed"} <= set(kinds)
    assert events[-1] == {"event": "end", "finished": 1, "skipped": 0, "of": 2}
    written = next(event for event in events if event["event"] == "written")
    assert written["stems"] == {"instrumental": str(tmp_path / "out/a/instrumental.wav")}


def test_json_reports_a_single_broken_song(separate, tmp_path, capsys):
    with pytest.raises(InputError, match=r"missing\.wav does not exist"):
        separate(tmp_path / "missing.wav", as_json=True)
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events[-2:] == ["failed", "end"]


def test_figure_writes_spectrograms_beside_the_stems(separate, tmp_path):
    from PIL import Image

    wave(tmp_path / "a.wav")
    out = separate(tmp_path / "a.wav", louder_middle, figure=True)
    assert [path.name for path in files(out)] == ["instrumental.wav", "spectrograms.png"]
    with Image.open(out / "a/spectrograms.png") as picture:
        assert picture.width > 400


def test_a_header_that_was_never_finished_is_said(separate, tmp_path, capsys):
    for name, said in (("of a crash.wav", True), ("from a pipe.wav", False)):
        GOOD[name](tmp_path / name)
        separate(tmp_path / name)
        assert ("header of the file was never finished" in capsys.readouterr().err) == said


def test_stems_carry_the_songs_tags(separate, tmp_path):
    from mutagen.flac import FLAC

    wave(tmp_path / "a.flac", container="FLAC")
    tagged = FLAC(tmp_path / "a.flac")
    tagged["title"], tagged["artist"] = "Song", ["One", "Two"]
    tagged.save()
    (path,) = files(separate(tmp_path / "a.flac"))
    assert (FLAC(path)["title"], FLAC(path)["artist"]) == (["Song"], ["One", "Two"])


# ---------------------------------------------------------------------------- seams


def test_no_seam_in_stationary_noise(separate, tmp_path):
    """The level of noise is constant through a model that attenuates the edges of each chunk."""
    rng = np.random.default_rng(0)
    wave(tmp_path / "a.wav", 0.1 * rng.standard_normal((2, 20 * RATE)), subtype="FLOAT")
    fade = np.minimum(1, np.arange(1, 4097) / 200)
    edged = (fade * fade[::-1]).astype(np.float32)
    out = separate(tmp_path / "a.wav", lambda x: (0.5 * x * edged)[:, None])
    y, x = audio.read(out / "a/instrumental.wav")[0], audio.read(tmp_path / "a.wav")[0]
    gain = np.abs(y).reshape(2, -1, 42).sum((0, 2)) / np.abs(x).reshape(2, -1, 42).sum((0, 2))
    middle = gain[100:-100]
    assert np.abs(20 * np.log10(middle / np.median(middle))).max() < 0.05


def test_no_click_whatever_the_segment_length(tmp_path, monkeypatch):
    """A short convolution gives the same result for any segment length, to −80 dBFS."""
    wave(tmp_path / "a.wav", music(samples=5 * RATE), subtype="FLOAT")

    def model(x):
        return (0.9 * x + 0.1 * np.roll(x, 7, -1))[:, None]

    written = []
    for segment in (3000, 4096, 11_025):
        separator = Separator(model, preset("tiny"), ChunkGrid(segment))
        monkeypatch.setattr(batch, "_load", lambda *_, s=separator: s)
        batch.separate_files([tmp_path / "a.wav"], SeparationOptions(out=tmp_path / str(segment)))
        written.append(audio.read(tmp_path / str(segment) / "a/instrumental.wav")[0][:, 10:-10])
    assert max(np.abs(other - written[0]).max() for other in written[1:]) < 1e-4


def test_every_option_reaches_the_separation(monkeypatch):
    """Each option arrives in SeparationOptions."""
    taken = {}
    monkeypatch.setattr(batch, "separate_files", lambda given, options: taken.update(given=given, options=options))
    line = (
        "separate a b -o out --filename {stem}.{ext} -n c.safetensors --two-stems vocals --flac --int16 "
        "--clip-mode rescale --mp3-bitrate 128 --overwrite -r --pairs --figure --overlap 0.5 --segment 2 --shifts 3 "
        "--tta --batch 4 --framework jax --device cuda --json --skip-existing --start 3 --length 2 --remux"
    )
    monkeypatch.setattr("sys.argv", ["twinsep", *line.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert [str(path) for path in taken["given"]] == ["a", "b"]
    assert taken["options"] == SeparationOptions(
        Path("out"), "{stem}.{ext}", Path("c.safetensors"), "vocals", None, "flac", Encoding("PCM_16", 128, "rescale"),
        Chunking(2.0, 0.5, 3, 4), True, True, True, True, True, "jax", "cuda", True, True,
        file.Excerpt(3.0, 2.0), True,
    )  # fmt: skip


def test_a_long_file_name_fits(separate, tmp_path):
    wave(tmp_path / LONG_NAME)
    assert files(separate(tmp_path / LONG_NAME))[0].parent.name == LONG_NAME[:-4]


def test_a_killed_command_leaves_complete_stems_and_hidden_files_which_the_next_run_removes(micro, tmp_path):
    """Two kills; the stage ``kills`` makes thirty."""
    from ablations.stages.kills import Separation
    from torch_impl.train import Trainer
    from twinsep import checkpoints

    checkpoints.write(tmp_path / "micro.safetensors", checkpoints.Checkpoint(micro, Trainer(micro).state()))

    class Here(Separation):
        """Whole runs in this process, which has imported everything."""

        def run_whole(self):
            options = SeparationOptions(
                out=self.out,
                checkpoint=self.weights,
                two_stems="vocals",
                framework=self.framework,
                overwrite=True,
            )
            batch.separate_files(self.songs, options)

    separation = Here(tmp_path, tmp_path / "micro.safetensors", "torch")
    assert len(separation.whole) == 2 * len(separation.songs)
    ends = separation.kill(2, seed=1)
    assert [end["other files"] for end in ends] == [0, 0]
    assert 0 < ends[0]["stems"] < len(separation.whole)  # or it would prove nothing
    leftover = next(iter(separation.whole)).replace("/", "/.").replace(".wav", ".999999999-0123abcd.tmp.wav")
    (separation.out / leftover).write_bytes(b"of a killed run")
    separation.run_whole()
    assert separation.files() == separation.whole
