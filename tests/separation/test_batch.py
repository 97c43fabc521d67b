"""``twinsep separate`` on a corpus of real-world formats: each song is separated or refused in one sentence."""

import contextlib
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers.corpus import BAD, GOOD, LONG_NAME, RATE, music, wave

from twinsep import audio, cli
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
    instrumental, vocals = (audio.read(out / song.stem / f"{stem}.wav") for stem in ("instrumental", "vocals"))
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
    with pytest.raises(InputError, match="songs of the same name"):
        separate(tmp_path / "in", extension="wav", out=tmp_path / "third")
    assert not (tmp_path / "third").exists()


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
    assert events[-1] == {"event": "end", "finished": 1, "of": 2}
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
        "--tta --batch 4 --framework jax --device cuda --json"
    )
    monkeypatch.setattr("sys.argv", ["twinsep", *line.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert [str(path) for path in taken["given"]] == ["a", "b"]
    assert taken["options"] == SeparationOptions(
        Path("out"), "{stem}.{ext}", Path("c.safetensors"), "vocals", None, "flac", Encoding("PCM_16", 128, "rescale"),
        Chunking(2.0, 0.5, 3, 4), True, True, True, True, True, "jax", "cuda", True,
    )  # fmt: skip


def test_a_long_file_name_fits(separate, tmp_path):
    wave(tmp_path / LONG_NAME)
    assert files(separate(tmp_path / LONG_NAME))[0].parent.name == LONG_NAME[:-4]


def test_a_killed_command_leaves_complete_stems_and_hidden_files_which_the_next_run_removes(micro, tmp_path):
    """Three kills; the stage ``kills`` makes thirty."""
    from ablations.stages.kills import Separation
    from torch_impl.train import Trainer
    from twinsep import checkpoints

    checkpoints.write(tmp_path / "micro.safetensors", checkpoints.Checkpoint(micro, Trainer(micro).state()))
    separation = Separation(tmp_path, tmp_path / "micro.safetensors", "torch")
    assert len(separation.whole) == 2 * len(separation.songs)
    ends = separation.kill(3, seed=1)
    assert [end["other files"] for end in ends] == [0, 0, 0]
    assert 0 < ends[0]["stems"] < len(separation.whole)  # or it would prove nothing
    leftover = next(iter(separation.whole)).replace("/", "/.").replace(".wav", ".999999999-0123abcd.tmp.wav")
    (separation.out / leftover).write_bytes(b"of a killed run")
    separation.run_whole()
    assert separation.files() == separation.whole
