"""Logs of a run: metrics that stay complete after a kill, and the separated samples."""

import io
import json
import shutil
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from PIL import Image
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from twinsep import audio
from twinsep.errors import InputError
from twinsep.training import logger
from twinsep.training.logger import write_sample

RATE, FFT = 44_100, {"sample_rate": 44_100, "n_fft": 2048, "hop": 512}


def log(folder, resume_step=0, tensorboard=False, output=None):
    """Open the log of a run; sentences go to ``output``."""
    console = Console(file=output or io.StringIO(), width=40)
    return logger.open_log(folder, resume_step=resume_step, tensorboard=tensorboard, console=console)


def values(step):
    """Metrics of a training step; every 15th step validates."""
    trained = {"train/loss": 1 / step, "train/gradient_norm": 0.1 + step}
    return trained | ({"valid/usdr": step / 7} if step % 15 == 0 else {})


def write(log_values, steps):
    for step in steps:
        log_values(step, values(step))


def metrics_of(folder):
    """(text by table, content of metrics.json)."""
    root = folder / "live"
    found = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.tsv")}
    return found, json.loads((root / "metrics.json").read_text())


def rows(folder, name):
    """Steps in the table of metric ``name``."""
    lines = (folder / "live/plots/metrics" / f"{name}.tsv").read_text().splitlines()
    return [int(line.split("\t")[0]) for line in lines[1:]]


def events(folder):
    """Per event file, in order: its (step, name, value), and (step, "purge", nan) where it discards later steps."""
    out = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content, offset, found = path.read_bytes(), 0, []
        while offset < len(content):  # length, its checksum, the event, its checksum
            length = struct.unpack_from("<Q", content, offset)[0]
            event = Event.FromString(content[offset + 12 : offset + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            if event.HasField("session_log"):
                found.append((event.step, "purge", np.nan))
            offset += length + 16
        out.append(found)
    return out


def test_every_tenth_step_and_every_validation_are_written(tmp_path):
    with log(tmp_path) as log_values:
        write(log_values, range(1, 32))
    assert rows(tmp_path, "train/loss") == [10, 15, 20, 30]
    assert rows(tmp_path, "valid/usdr") == [15, 30]
    assert metrics_of(tmp_path)[1] == {
        "train": {"loss": 1 / 30, "gradient_norm": 30.1},
        "valid": {"usdr": 30 / 7},
        "step": 30,
    }
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("end", ["killed", "killed while writing", "interrupted"])
@pytest.mark.parametrize("resume_step", [5, 15])
def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one(tmp_path, end, resume_step):
    with log(tmp_path / "whole") as log_values:
        write(log_values, range(1, 46))
    with log(tmp_path / "running") as log_values:
        write(log_values, range(1, 32))
        if end != "interrupted":
            shutil.copytree(tmp_path / "running", tmp_path / "stopped")
    if end == "interrupted":
        (tmp_path / "running").rename(tmp_path / "stopped")
    if end == "killed while writing":
        with (tmp_path / "stopped/live/plots/metrics/train/loss.tsv").open("a") as file:
            file.write("4")  # the first digit of 40
        (tmp_path / "stopped/live/metrics.json").write_text('{"step"')
    with log(tmp_path / "stopped", resume_step) as log_values:
        write(log_values, range(resume_step + 1, 46))
    assert metrics_of(tmp_path / "stopped") == metrics_of(tmp_path / "whole")


def test_rows_after_the_resumed_step_are_removed_at_once(tmp_path):
    with log(tmp_path) as log_values:
        write(log_values, range(1, 32))
    with log(tmp_path, 15):
        pass
    assert rows(tmp_path, "train/loss") == [10, 15]
    assert metrics_of(tmp_path)[1] == {
        "train": {"loss": 1 / 15, "gradient_norm": 15.1},
        "valid": {"usdr": 15 / 7},
        "step": 15,
    }


def test_tensorboard_gets_the_same_values_and_discards_those_of_a_killed_run(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/events.out.tfevents.1.of.an.earlier.run").write_bytes(b"")
    with log(tmp_path, tensorboard=True) as log_values:
        write(log_values, range(1, 32))
    with log(tmp_path, 15, tensorboard=True) as log_values:
        write(log_values, range(16, 21))
    first, second = events(tmp_path)
    expected = [(step, name, pytest.approx(v)) for step in (10, 15, 20, 30) for name, v in values(step).items()]
    assert first == expected
    assert [row[:2] for row in second] == [(16, "purge"), (20, "train/loss"), (20, "train/gradient_norm")]
    assert rows(tmp_path, "train/loss") == [10, 15, 20]


def test_a_missing_tensorboard_writer_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with (
        pytest.raises(InputError, match=r"install it with: pip install 'twinsep\[tensorboard\]'"),
        log(tmp_path / "run", tensorboard=True),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_without_dvclive_one_sentence_says_that_metrics_are_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dvclive", None)
    output = io.StringIO()
    with log(tmp_path, output=output) as log_values:
        write(log_values, range(1, 32))
    assert output.getvalue() == (
        "metrics are not written: DVCLive is not installed (pip install 'twinsep[reproduce]')\n"
    )
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- samples


@pytest.fixture(scope="module")
def sounds():
    """Noise that grows louder, and a quarter of it."""
    noise = np.random.default_rng(0).standard_normal((2, 10 * RATE)) * np.geomspace(1e-4, 0.3, 10 * RATE)
    return noise.astype(np.float32), (0.25 * noise).astype(np.float32)


def pixels(path, mode="RGB"):
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode))


def panels(path):
    """Brightness of each panel of the picture near its loud end, from top to bottom."""
    picture = pixels(path, "L")
    dark = picture[:, picture.shape[1] // 3] < 200  # the quiet part of the panels, between white margins
    edges = np.flatnonzero(np.diff(np.concatenate([[0], dark, [0]])))
    spans = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 80]
    return [picture[a + 5 : b - 5, int(picture.shape[1] * 0.8)].mean() for a, b in spans]


def test_a_sample_is_written_as_sound_and_as_picture(tmp_path, sounds):
    mixture, target = sounds
    estimate = (10 * target).astype(np.float32)  # exceeds full scale at its end
    write_sample(tmp_path, 20, name="a song", mixture=mixture, target=target, estimate=estimate, **FFT)
    found = tmp_path / "samples/step-000020.flac"
    decoded, rate = audio.read(found)
    assert rate == RATE
    assert np.abs(decoded - np.clip(estimate, -1, 1)).max() <= 2**-15
    assert soundfile.info(found).subtype == "PCM_16"
    assert decoded.shape == mixture.shape
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"step-000020.flac", "step-000020.png"}


def test_the_panels_are_mixture_estimate_target_and_difference(tmp_path, sounds):
    mixture, target = sounds
    write_sample(tmp_path, 1, name="", mixture=mixture, target=target, estimate=0.1 * target, **FFT)
    loud, estimated, wanted, difference = panels(tmp_path / "samples/step-000001.png")
    assert loud > wanted > difference > estimated
    write_sample(tmp_path, 2, name="", mixture=mixture, target=target, estimate=target, **FFT)
    exact = panels(tmp_path / "samples/step-000002.png")
    assert exact[1:3] == pytest.approx([wanted, wanted], abs=1)
    assert exact[3] == 0


@pytest.mark.parametrize("name", ["A$AP feat. _^{ Ke$ha", "日本 — 音", "long " * 50])
def test_any_song_name_gives_a_picture_of_limited_size(tmp_path, sounds, name):
    mixture, target = sounds
    with ThreadPoolExecutor(1) as pool:  # matplotlib must work outside the main thread
        arrays = {"mixture": mixture, "target": np.zeros_like(target), "estimate": target}
        pool.submit(write_sample, tmp_path, 3, name=name, **arrays, **FFT).result()
    path = tmp_path / "samples/step-000003.png"
    assert path.stat().st_size < 150_000
    picture = pixels(path)
    assert picture.shape == (820, 820, 3)
    assert picture[0, 0].tolist() == [255, 255, 255]


def test_a_very_short_silence_gives_a_picture(tmp_path):
    silence = np.zeros((2, 300), np.float32)
    write_sample(tmp_path, 4, name="s", mixture=silence, target=silence, estimate=silence, **FFT)
    assert pixels(tmp_path / "samples/step-000004.png").shape == (820, 820, 3)


def test_without_matplotlib_only_the_sound_is_written(tmp_path, sounds, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    mixture, target = sounds
    write_sample(tmp_path, 5, name="s", mixture=mixture, target=target, estimate=target, **FFT)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-000005.flac"]


def test_an_estimate_that_is_not_finite_writes_nothing(tmp_path, sounds):
    mixture, target = sounds
    with pytest.raises(InputError, match="NaN"):
        write_sample(tmp_path, 6, name="s", mixture=mixture, target=target, estimate=target * np.float32(np.nan), **FFT)
    assert not list(tmp_path.iterdir())
