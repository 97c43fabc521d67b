"""Decoding with PyAV: start and length of the sound, refusals, bounded memory."""

import os
import re
import struct
import tracemalloc
import zlib

import av
import numpy as np
import pytest
import scipy.signal
import soundfile

from twinsep import audio
from twinsep.errors import InputError

RATE = 44_100
FRAMES = 50_037  # a whole number neither of any codec's frames nor of milliseconds
FRAGMENTS = {"movflags": "frag_keyframe+delay_moov", "frag_duration": "200000"}
#: File name → (codec, rate, options of the container), for files that state where their sound starts and ends.
EXACT = {
    "aac.m4a": ("aac", RATE, {}),
    "fast.m4a": ("aac", RATE, {"movflags": "faststart"}),
    "exact.m4a": ("aac", RATE, {"movie_timescale": "44100"}),
    "aac.mp4": ("aac", 48_000, {}),
    "fragments.mp4": ("aac", RATE, FRAGMENTS),
    "aac.mov": ("aac", RATE, {}),
    "pcm.mov": ("pcm_s16le", RATE, {}),
    "alac.m4a": ("alac", RATE, {}),
    "opus.mp4": ("libopus", 48_000, {}),
    "opus.mkv": ("libopus", 48_000, {}),
    "opus.webm": ("libopus", 48_000, {}),
    "mp3.mkv": ("libmp3lame", RATE, {}),
    "flac.mkv": ("flac", RATE, {}),
    "pcm.mkv": ("pcm_s16le", RATE, {}),
    "float.mkv": ("pcm_f32le", RATE, {}),
    "flac.oga": ("flac", RATE, {}),
    "a.mp3": ("libmp3lame", RATE, {}),
    "a.wv": ("wavpack", RATE, {}),
    "a.tta": ("tta", RATE, {}),
    "pcm.avi": ("pcm_s16le", RATE, {}),
}
#: The same with the delay in samples that the file does not state; padding follows the sound.
PADDED = {
    "aac.mkv": ("aac", RATE, {}, 0),
    "no edit list.m4a": ("aac", RATE, {"use_editlist": "0"}, 1024),
    "a.aac": ("aac", RATE, {}, 1024),
    "a.ts": ("aac", RATE, {}, 1024),
    "a.flv": ("aac", RATE, {}, 1024),
    "a.ac3": ("ac3", RATE, {}, 256),
    "a.avi": ("libmp3lame", RATE, {}, 1105),
    "no header.mp3": ("libmp3lame", RATE, {"write_xing": "0"}, 1105),
}
#: Files of which a part looks complete.
CANNOT_TELL = {"a.ac3", "no header.mp3"}
ALL = {**EXACT, **{name: made[:3] for name, made in PADDED.items()}}


def music(frames=FRAMES, channels=2):
    """Sound (C, S) that differs from place to place, so that a shift shows."""
    rng = np.random.default_rng(frames)
    loudness = np.interp(np.arange(frames), np.arange(0, frames + 2000, 1000), rng.random((frames + 2999) // 1000))
    phase = 2 * np.pi * 440 * np.arange(frames) / RATE
    return np.stack([0.5 * loudness * np.sin((channel + 1) * phase) for channel in range(channels)]).astype(np.float32)


def write(path, waveform, codec, rate=RATE, options=(), *, layout="stereo", film=False, streams=1, metadata=()):
    with av.open(str(path), "w", options=dict(options)) as container:
        container.metadata.update(dict(metadata))
        if film:
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        sounds = [container.add_stream(codec, rate=rate, layout=layout) for _ in range(streams)]
        encoders = [av.AudioResampler(sound.codec_context.format, layout, rate) for sound in sounds]
        if film:  # one picture, once all streams are there
            still = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux([*video.encode(still), *video.encode(None)])
        for start in range(0, waveform.shape[1], 1024):
            for number, (sound, encoder) in enumerate(zip(sounds, encoders, strict=True), 1):
                block = np.ascontiguousarray(waveform[:, start : start + 1024].T / number, np.float32)
                frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="flt", layout=layout)
                frame.sample_rate, frame.pts = rate, start
                container.mux([packet for part in encoder.resample(frame) for packet in sound.encode(part)])
        for sound, encoder in zip(sounds, encoders, strict=True):
            container.mux([packet for part in (*encoder.resample(None), None) for packet in sound.encode(part)])


def alike(sound, waveform):
    return np.square(sound - waveform).mean() < 0.02 * np.square(waveform).mean()


# ---------------------------------------------------------------------------- start and length


@pytest.mark.parametrize("name", EXACT)
def test_sound_keeps_its_length_and_place(tmp_path, name):
    codec, rate, options = EXACT[name]
    path, waveform = tmp_path / name, music()
    write(path, waveform, codec, rate, options)
    sound, its_rate = audio.read(path)
    assert (sound.shape, its_rate) == ((2, FRAMES), rate)
    assert alike(sound[:, :20_000], waveform[:, :20_000])
    assert alike(sound[:, -5_000:-1_000], waveform[:, -5_000:-1_000])
    with audio.open_audio(path) as source:
        blocks = [*source.blocks()]
    assert np.array_equal(np.concatenate(blocks, axis=1), sound)
    assert max(block.shape[1] for block in blocks) <= audio.BLOCK
    assert (source.frames in (None, FRAMES), source.is_float) == (True, name == "float.mkv")
    assert audio.verify(path) == audio.AudioInfo(FRAMES, rate, 2, source.is_float)
    assert audio.info(path) == audio.AudioInfo(FRAMES, rate, 2, source.is_float)


@pytest.mark.parametrize("name", PADDED)
def test_no_sound_is_lost_if_the_padding_is_not_stated(tmp_path, name):
    *made, delay = PADDED[name]
    write(tmp_path / name, music(), *made)
    sound = audio.read(tmp_path / name)[0]
    assert delay + FRAMES <= sound.shape[1] < delay + FRAMES + 3_000
    assert alike(sound[:, delay : delay + FRAMES], music())


@pytest.mark.parametrize("frames", [2, 1023, 1024, 1025, 44_100, 97 * 1024])
def test_an_m4a_of_any_length(tmp_path, frames):
    write(tmp_path / "a.m4a", music(frames), "aac", options={"movie_timescale": "44100"})
    assert audio.info(tmp_path / "a.m4a").frames == audio.read(tmp_path / "a.m4a")[0].shape[1] == frames


def test_an_mp3_of_varying_bit_rate_without_a_length_is_not_cut(tmp_path):
    # Quiet, then loud: the bit rate of the start says nothing of the length.
    noise = np.random.default_rng(0).standard_normal((2, 3 * RATE)) * np.linspace(0, 0.2, 3 * RATE)
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w", options={"write_xing": "0"}) as container:
        quality = {"global_quality": "236", "flags": "+qscale"}
        stream = container.add_stream("libmp3lame", rate=RATE, layout="stereo", options=quality)
        frame = av.AudioFrame.from_ndarray(noise.astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate = RATE
        sized = av.AudioResampler("fltp", "stereo", RATE, frame_size=1152)
        container.mux([packet for part in sized.resample(frame) for packet in stream.encode(part)])
        container.mux(stream.encode(None))
    assert soundfile.info(path).frames < 3 * RATE - 1152  # the trap: libsndfile would lose the end
    assert audio.read(path)[0].shape[1] >= 3 * RATE - 1152


@pytest.mark.parametrize("codec", ["libmp3lame", "pcm_s16le", "aac"])
def test_a_live_recording_that_states_no_length_is_not_taken_for_a_cut_file(tmp_path, codec):
    write(tmp_path / "a.mkv", music(20 * RATE), codec, options={"live": "1"})  # FFmpeg overestimates it by 0.4 s
    assert 20 * RATE <= audio.verify(tmp_path / "a.mkv").frames < 20 * RATE + 3_000


def test_an_mp3_of_another_extension_is_decoded_by_pyav(tmp_path):
    write(tmp_path / "a.mp3", music(), "libmp3lame", options={"write_xing": "0"})
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.mp3").read_bytes())
    (tmp_path / "b.wav").write_bytes(b"ID3\4\0\0\0\0\0\x10" + bytes(16) + (tmp_path / "a.mp3").read_bytes())
    for name in ("a.wav", "b.wav"):
        assert np.array_equal(audio.read(tmp_path / name)[0], audio.read(tmp_path / "a.mp3")[0])


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_a_film_gives_its_first_audio_stream(tmp_path, name):
    write(tmp_path / name, music(), "aac", film=True, streams=2)
    first, second = (audio.read(tmp_path / name, stream=number)[0] for number in (0, 1))
    assert alike(first[:, :FRAMES], music())
    assert alike(second[:, :FRAMES], music() / 2)
    assert audio.verify(tmp_path / name).frames == first.shape[1]
    with pytest.raises(InputError, match="has 2 audio streams, none of number 2"):
        audio.read(tmp_path / name, stream=2)


def test_eight_channels_keep_their_order(tmp_path):
    waveform = music(5_000, 8)
    write(tmp_path / "a.mkv", waveform, "flac", layout="7.1")
    with pytest.raises(InputError, match="has 8 channels"):
        audio.verify(tmp_path / "a.mkv")
    with audio.open_audio(tmp_path / "a.mkv", max_channels=8) as source:
        assert np.abs(next(source.blocks()) - waveform).max() < 2**-14


# ---------------------------------------------------------------------------- timestamps


#: File name, codec and the samples by which a timestamp may be off: milliseconds, or the delay of a codec.
TIMED = [("a.mkv", "aac", 50), ("a.mkv", "pcm_s16le", 50), ("a.mp4", "aac", 1_100), ("a.ts", "aac", 1_100)]


def lag(sound, place, part):
    """Samples by which ``part`` lies before or after ``place`` in ``sound``."""
    around = sound[:, place - 3_000 : place + part.shape[1] + 3_000]
    windows = np.lib.stride_tricks.sliding_window_view(around[0], part.shape[1])
    energies = np.square(windows[::100]).sum(1)  # changes slowly
    products = scipy.signal.correlate(around[0], part[0], "valid")
    best = int((np.repeat(energies, 100)[: len(products)] - 2 * products).argmin())
    assert alike(around[:, best : best + part.shape[1]], part)
    return abs(best - 3_000)


def write_moved(path, waveform, codec, *, film, moved):
    """Write sound whose packet at ``time`` seconds gets the time ``moved(time)``."""
    with av.open(str(path), "w") as container:
        if film:
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream(codec, rate=48_000, layout="stereo")
        if film:
            pictures = [av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24") for _ in range(20)]
            for number, picture in enumerate(pictures):
                picture.pts = number
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        encoder = av.AudioResampler(sound.codec_context.format, "stereo", 48_000)

        def mux(packets):
            for packet in packets:
                time = float(packet.pts * packet.time_base)
                packet.pts = packet.dts = packet.pts + round((moved(time) - time) / packet.time_base)
                container.mux(packet)

        for start in range(0, waveform.shape[1], 1024):
            block = np.ascontiguousarray(waveform[:, start : start + 1024].T, np.float32)
            frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="flt", layout="stereo")
            frame.sample_rate, frame.pts = 48_000, start
            for part in encoder.resample(frame):
                mux(sound.encode(part))
        for part in (*encoder.resample(None), None):
            mux(sound.encode(part))


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize(("name", "codec", "tolerance"), TIMED)
def test_a_gap_in_the_timestamps_is_filled_with_silence(tmp_path, name, codec, tolerance, film):
    path, waveform, rate = tmp_path / name, music(4 * 48_000), 48_000
    write_moved(path, waveform, codec, film=film, moved=lambda time: time)
    plain = audio.verify(path)
    assert plain.notes == ()
    write_moved(path, waveform, codec, film=film, moved=lambda time: time + 2 * (time >= 1.99))
    info = audio.verify(path)
    assert info.frames == pytest.approx(plain.frames + 2 * rate, abs=1_100)
    (note,) = info.notes
    assert re.fullmatch(r"its sound has a gap of 2\.00 s at (1\.9|2\.0)\d s, filled with silence", note)
    sound = audio.read(path)[0]
    assert not sound[:, 2 * rate + 5_000 : 4 * rate - 5_000].any()
    for place, at in ((rate, rate), (5 * rate, 3 * rate)):
        assert lag(sound, place, waveform[:, at : at + rate // 2]) <= tolerance


@pytest.mark.parametrize(("name", "codec", "tolerance"), TIMED)
def test_sound_that_begins_after_the_picture_keeps_its_place(tmp_path, name, codec, tolerance):
    path, waveform, rate = tmp_path / name, music(2 * 48_000), 48_000
    write_moved(path, waveform, codec, film=True, moved=lambda time: time + 0.5)
    (note,) = audio.verify(path).notes
    assert note.startswith("its sound begins 0.")
    assert note.endswith("s after its picture, which silence fills")
    sound = audio.read(path)[0]
    assert not sound[:, : rate // 2 - 2_048].any()
    assert lag(sound, 3 * rate // 2, waveform[:, rate : rate + rate // 2]) <= tolerance


def test_jitter_drift_and_a_clock_that_is_set_anew_are_no_gaps(tmp_path):
    waveform = music(2 * 48_000)
    for moved, notes in [
        (lambda time: 0.9 * time if time < 1.6 else time, 0),
        (lambda time: 1.2 * time, 0),
        (lambda time: time + 7200 * (time >= 1), 1),
    ]:
        write_moved(tmp_path / "a.mkv", waveform, "pcm_s16le", film=False, moved=moved)
        info = audio.verify(tmp_path / "a.mkv")
        assert info.frames == 2 * 48_000
        assert len(info.notes) == notes


# ---------------------------------------------------------------------------- memory


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.mkv", "pcm_s16le")])
def test_memory_does_not_grow_with_the_song(tmp_path, name, codec):
    frames = 10 * audio.BLOCK
    write(tmp_path / name, np.tile(music(audio.BLOCK), 10), codec)
    told = []
    tracemalloc.start()
    audio.verify(tmp_path / name, report=lambda *progress: told.append(progress))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 2 * 4 * audio.BLOCK
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == frames
    assert all(abs(total - frames) < 5_000 for _, total in told)


def test_blocks_come_before_the_file_is_decoded_to_its_end(tmp_path):
    path = tmp_path / "a.mp3"
    write(path, np.tile(music(audio.BLOCK), 4), "libmp3lame")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with audio.open_audio(path) as source:
        blocks = source.blocks()
        next(blocks)
        next(blocks)
        with pytest.raises(InputError, match="damaged or cut short"):
            next(blocks)
    with audio.open_audio(path) as source:
        next(source.blocks())  # the damage after it is not reached


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ALL)
def test_a_file_cut_short_is_refused_if_that_shows(tmp_path, name):
    path = tmp_path / name
    write(path, music(), *ALL[name])
    whole = path.read_bytes()
    for kept in (0.8, 0.5):
        path.write_bytes(whole[: int(kept * len(whole))])
        if name in CANNOT_TELL:
            assert audio.verify(path).frames < FRAMES
        elif name != "a.ts":  # shows only a cut through a frame
            with pytest.raises(InputError, match=r"damaged or (cut short|of an unknown format)"):
                audio.verify(path)


def test_an_m4a_whose_last_packets_are_missing_is_refused(tmp_path):
    path = tmp_path / "a.m4a"
    write(path, music(), "aac", options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux() if packet.size]
    path.write_bytes(path.read_bytes()[: places[-5]])
    with pytest.raises(InputError, match=r"1\.02 of 1\.13 s are there"):
        audio.verify(path)


def test_an_ogg_whose_last_page_is_cut_is_refused_and_one_without_it_noted(tmp_path):
    path = tmp_path / "a.oga"
    write(path, music(3 * FRAMES), "flac")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="damaged or cut short"):
        audio.verify(path)
    path.write_bytes(whole[: whole.rindex(b"OggS")])
    assert "not marked as the last" in audio.verify(path).notes[0]


@pytest.mark.parametrize("name", ["whole.caf", "whole.flac"])
def test_files_that_libsndfile_refuses_are_not_shortened_by_pyav(tmp_path, name):
    soundfile.write(tmp_path / name, music().T, RATE)
    content = (tmp_path / name).read_bytes()
    tag = b"ID3\4\0\0\0\0\0\x10" + bytes(16) if name.endswith("flac") else b""
    (tmp_path / name).write_bytes(tag + content)
    assert audio.verify(tmp_path / name).frames == FRAMES
    (tmp_path / name).write_bytes(tag + content[: len(content) * 8 // 10])
    with pytest.raises(InputError, match="damaged or cut short"):
        audio.verify(tmp_path / name)


def test_sound_that_changes_its_rate_is_refused(tmp_path):
    content = b""
    for rate in (RATE, 48_000):
        write(tmp_path / "a.aac", music(20_000), "aac", rate)
        content += (tmp_path / "a.aac").read_bytes()
    (tmp_path / "a.aac").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.aac changes from 44100 Hz, stereo, fltp to 48000 Hz"):
        audio.verify(tmp_path / "a.aac")


def picture():
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(bytes(100 * 301))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100, 100, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("extension", ["wav", "mp3", "flac", "m4a", "aac", "ogg", "mkv", "raw", "png"])
def test_files_that_are_not_sound_are_refused_in_one_sentence_without_other_output(tmp_path, capfd, extension):
    path = tmp_path / f"a.{extension}"
    for content in (
        b"no sound at all, " * 100,
        "hello".encode("utf-16") * 50,
        b"#EXTM3U\n#EXTINF:10,\nother.ts\n#EXT-X-ENDLIST\n",
        b"\0",
        bytes(70_000),
        picture(),
        *(np.random.default_rng(seed).bytes(3_000) for seed in range(3)),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"(cannot be read as|holds no) sound") as caught:
            audio.verify(path)
        assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")


def test_file_names_that_look_like_protocols_patterns_or_options_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("a.m4a", music(3_000), "aac")
    for name in ("12:30.m4a", "file:a b.m4a", "%d.m4a", "-i.m4a", "two\nlines.m4a", os.fsdecode(b"\xff.m4a")):
        os.link("a.m4a", name)
        assert audio.verify(name).frames == 3_000


def test_files_with_tags_that_are_not_utf_8_are_read(tmp_path):
    write(tmp_path / "a.mkv", music(3_000), "pcm_s16le", metadata={"title": "some title"})
    content = (tmp_path / "a.mkv").read_bytes()
    assert content.count(b"some title") == 1
    (tmp_path / "a.mkv").write_bytes(content.replace(b"some title", b"s\xf6me t\xeftle"))
    assert audio.verify(tmp_path / "a.mkv").frames == 3_000
