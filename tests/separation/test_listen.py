"""``twinsep listen``: through pipes, and through a stand-in for the sound devices."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from twinsep import checkpoints
from twinsep.audio.pcm import PCM
from twinsep.checkpoints import Checkpoint
from twinsep.config import preset
from twinsep.errors import InputError
from twinsep.model import initializers
from twinsep.separation.listen import ListenOptions, Meter, StemStream, listen, listen_to_devices, listen_to_pipe
from twinsep.utils.backend import twin

RATE = 44_100


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small causal network with weights drawn from seed 0."""
    import torch

    from torch_impl.layers import named_parameters
    from torch_impl.networks import build

    small = {"d_model": 8, "n_heads": 2, "bands": "vocal18", "mixer": {"kind": "mamba", "d_state": 4}}
    config = preset("tiny-causal").override({"model": small})
    with torch.device("meta"):
        weights = named_parameters(build(config))
    drawn = {name: initializers.draw(name, w.shape, w.initialiser, 0) for name, w in weights.items()}
    drawn = {name: w.astype(np.float32) for name, w in drawn.items()}
    path = tmp_path_factory.mktemp("causal") / "model.safetensors"
    both = {f"{prefix}/{name}": w for prefix in ("model", "ema") for name, w in drawn.items()}
    checkpoints.write(path, Checkpoint(config, both))
    return path


@pytest.fixture(scope="module")
def network(checkpoint):
    return twin("torch").load(checkpoint)


def noise(samples, channels=2):
    return (0.1 * np.random.default_rng(0).standard_normal((channels, samples))).astype(np.float32)


def wanted(network, x, stem="instrumental"):
    stream = StemStream(network.stream(), network.config, stem)
    return np.concatenate([stream.push(x), stream.finish()], 1)


def command(checkpoint, *options):
    return [sys.executable, "-m", "twinsep.cli", "listen", "-n", str(checkpoint), *options]


def test_a_wav_file_goes_through_a_pipe(checkpoint, network):
    pcm, x = PCM(RATE, 2, "f32le"), noise(30_000)
    done = subprocess.run(
        command(checkpoint), input=pcm.header() + pcm.encode(x), capture_output=True, timeout=300, check=True
    )
    head = len(pcm.header())
    assert done.stdout[:head] == pcm.header()
    np.testing.assert_allclose(pcm.decode(done.stdout[head:]), wanted(network, x), atol=1e-6)
    assert b"separated 0.7 s, 46 ms late; " in done.stderr


def test_ctrl_c_is_the_end_of_the_signal(checkpoint, network):
    pcm, x = PCM(RATE, 2, "f32le"), noise(7 * 1024)  # which a pipe holds
    running = subprocess.Popen(
        command(checkpoint, "--raw", "f32le"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    running.stdin.write(pcm.encode(x))
    running.stdin.flush()
    first = running.stdout.read(8 * 6 * 1024)  # all blocks were read, and the pipe stays open
    os.kill(running.pid, signal.SIGINT)
    rest, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    np.testing.assert_allclose(pcm.decode(first + rest), wanted(network, x), atol=1e-6)
    assert b"separated 0.2 s" in said


def test_ctrl_c_during_a_block_lets_it_be_finished(network):
    pcm, x, sink = PCM(RATE, 2, "f32le"), noise(5 * 1024), io.BytesIO()
    stem = StemStream(network.stream(), network.config, "vocals")
    push, blocks = stem.push, []

    def interrupted(samples):
        blocks.append(samples)
        if len(blocks) == 3:
            signal.raise_signal(signal.SIGINT)
        return push(samples)

    stem.push = interrupted
    before = signal.getsignal(signal.SIGINT)
    listen_to_pipe(stem, RATE, io.BytesIO(pcm.encode(x)), sink, pcm, meter())
    np.testing.assert_allclose(pcm.decode(sink.getvalue()), wanted(network, x[:, : 3 * 1024], "vocals"), atol=1e-6)
    assert signal.getsignal(signal.SIGINT) is before


def meter(hop=1024):
    return Meter(RATE, 2048, hop, io.StringIO())


@pytest.mark.parametrize("stem", ["instrumental", "vocals"])
@pytest.mark.parametrize(("channels", "name"), [(1, "s16le"), (2, "s16le"), (1, "f32le")])
def test_raw_samples_of_every_form(network, stem, channels, name):
    pcm, x = PCM(RATE, channels, name), noise(10_000, channels)
    x = pcm.decode(pcm.encode(x))
    sink = io.BytesIO()
    listen_to_pipe(
        StemStream(network.stream(), network.config, stem), RATE, io.BytesIO(pcm.encode(x)), sink, pcm, meter()
    )
    expected = wanted(network, x if channels == 2 else x.repeat(2, 0), stem)
    expected = expected if channels == 2 else expected.mean(0, keepdims=True)
    assert sink.getvalue() == pcm.encode(expected)


def test_both_stems_add_up_to_the_signal(network):
    x = noise(9_000)
    np.testing.assert_allclose(wanted(network, x) + wanted(network, x, "vocals"), x, atol=1e-6)


def test_sound_stops_where_the_wav_file_says(network):
    pcm, x = PCM(RATE, 2, "f32le"), noise(5_000)
    header = bytearray(pcm.header())
    header[-4:] = (8 * 5_000).to_bytes(4, "little")
    sink = io.BytesIO()
    source = io.BytesIO(bytes(header) + pcm.encode(x) + b"LIST" + bytes(100))
    listen_to_pipe(StemStream(network.stream(), network.config, "vocals"), RATE, source, sink, None, meter())
    assert len(sink.getvalue()) == len(header) + 8 * 5_000


def test_another_rate_is_refused(network):
    pcm, sink = PCM(48_000, 2, "f32le"), io.BytesIO()
    stem = StemStream(network.stream(), network.config, "vocals")
    with pytest.raises(InputError, match="has 48000 Hz and the model 44100: resample it first"):
        listen_to_pipe(stem, RATE, io.BytesIO(pcm.header()), sink, None, meter())
    assert not sink.getvalue()


def test_unknown_stems_and_channels_are_refused(checkpoint, network):
    with pytest.raises(InputError, match="no stem 'drums': choose from vocals, instrumental"):
        StemStream(network.stream(), network.config, "drums")
    with pytest.raises(InputError, match="--channels 3: raw samples have 1 or 2"):
        listen(ListenOptions(checkpoint, channels=3))


class Devices:
    """A stand-in for sounddevice: it records noise for some blocks, then Ctrl-C is pressed."""

    class PortAudioError(Exception):
        pass

    def __init__(self, x, error=None):
        self.x, self.error, self.played, self.opened = x, error, [], {}

    @contextlib.contextmanager
    def Stream(self, **options):
        if self.error:
            raise self.error
        self.opened = options
        yield types.SimpleNamespace(read=self.read, write=self.write)

    def read(self, frames):
        if not self.x.shape[1]:
            raise KeyboardInterrupt
        block, self.x = self.x[:, :frames], self.x[:, frames:]
        return block.T, self.x.shape[1] < 2 * frames

    def write(self, samples):
        assert samples.flags.c_contiguous
        assert samples.dtype == np.float32
        self.played.append(samples.T)
        return False


def test_what_a_device_records_is_played_on_another(checkpoint, network, monkeypatch, capsys):
    x = noise(10 * 1024)
    devices = Devices(x)
    monkeypatch.setitem(sys.modules, "sounddevice", devices)
    listen(ListenOptions(checkpoint, live=True, source="3", sink="speakers"))
    assert devices.opened["device"] == (3, "speakers")
    assert (devices.opened["samplerate"], devices.opened["blocksize"], devices.opened["channels"]) == (RATE, 1024, 2)
    played = np.concatenate(devices.played, 1)
    assert not played[:, :1024].any()  # while the first block is computed
    np.testing.assert_allclose(played[:, 1024:], wanted(network, x)[:, : 9 * 1024], atol=1e-6)
    assert "2 lost by the sound devices" in capsys.readouterr().err


@pytest.mark.parametrize("error", [Devices.PortAudioError("no device"), ValueError("No input device matching 'x'")])
def test_devices_that_cannot_be_used_are_named_in_a_sentence(network, monkeypatch, error):
    monkeypatch.setitem(sys.modules, "sounddevice", Devices(noise(0), error))
    stem = StemStream(network.stream(), network.config, "vocals")
    with pytest.raises(InputError, match=r"cannot be used \(.*\); `python -m sounddevice` lists"):
        listen_to_devices(stem, RATE, ListenOptions(Path("x")), meter())


def test_without_the_extra_a_sentence_says_how_to_install_it(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    stem = StemStream(network.stream(), network.config, "vocals")
    with pytest.raises(InputError, match=r"pip install 'twinsep\[live\]'"):
        listen_to_devices(stem, RATE, ListenOptions(Path("x")), meter())


def test_the_meter_counts_late_blocks_and_shows_levels(monkeypatch):
    clock = iter([0.0, *(10.0, 10.5), *(20.0, 20.001), 30.0, 30.0])  # blocks of 23 ms that take 0.5 s and 1 ms
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    screen = io.StringIO()
    screen.isatty = lambda: True
    found = Meter(1000, 46, 23, screen)
    for _ in range(2):
        with found.block(np.full((2, 23), 0.5)):
            pass
    found.played(np.full((2, 23), 0.05))
    found.finish()
    assert "in   -6.0 dB  out  -26.0 dB  late 1" in screen.getvalue()
    assert (
        "separated 0.0 s, 46 ms late; 1 of 2 blocks took longer than they last, the longest 21.74" in screen.getvalue()
    )
