"""The page of ``twinsep demo``: what it gives is what the command writes, and what it was given does not stay."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from ablations.fault_injection import RATE, write_song
from torch_impl.train import Trainer
from twinsep import audio, checkpoints
from twinsep.audio import spectrogram
from twinsep.checkpoints import Checkpoint
from twinsep.config import preset
from twinsep.demo import app
from twinsep.demo.jobs import JobCancelled, JobQueue
from twinsep.errors import InputError
from twinsep.separation import batch
from twinsep.separation.batch import SeparationOptions
from twinsep.separation.overlap_add import ChunkGrid
from twinsep.separation.separator import Separator

CHROMIUM = shutil.which("chromium")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync"""


# ---------------------------------------------------------------------------- the workshop


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    monkeypatch.setattr(spectrogram, "draw_spectrograms", lambda *_, **__: b"\x89PNG")
    (tmp_path / "kept").mkdir()
    return JobQueue(Separator(lambda x: 0.5 * x[:, None], preset("tiny"), ChunkGrid(4096)), tmp_path / "kept")


def uploaded(workshop, name="song.wav", digest="abc", samples=20_000):
    """As Gradio keeps an upload: in a folder named after its content."""
    path = workshop.folder / digest / name
    waveform = (0.2 * np.random.default_rng(0).standard_normal((2, samples))).astype(np.float32)
    audio.write(path.parent / "whole.wav", waveform, RATE)
    (path.parent / "whole.wav").rename(path)
    return path


def separate(workshop, song, visitor="ann", report=lambda *_: None):
    return workshop.separate(visitor, song, reading=report, separating=report)


def files(workshop):
    return {path.relative_to(workshop.folder).name for path in workshop.folder.rglob("*") if path.is_file()}


ALL = {"song.wav", "song (instrumental).wav", "song (vocals).wav", "song (spectrograms).png"}


def test_a_song_becomes_files_for_each_player(workshop):
    song = uploaded(workshop)
    result = separate(workshop, song)
    assert result.mixture == song
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    stems = [audio.read(path)[0] for path in (result.instrumental, result.vocals)]
    np.testing.assert_allclose(sum(stems), audio.read(song)[0], atol=3e-7)
    assert files(workshop) == ALL


def test_a_format_that_not_all_browsers_play_gets_a_copy(workshop):
    song = uploaded(workshop)
    other = song.with_suffix(".aiff")
    import soundfile

    soundfile.write(other, audio.read(song)[0].T, RATE)
    result = separate(workshop, other)
    assert result.mixture.suffix == ".flac"
    np.testing.assert_allclose(audio.read(result.mixture)[0], audio.read(other)[0], atol=2**-15)
    assert result.vocals.suffix == ".wav"


def test_the_next_song_takes_the_place_of_the_last(workshop):
    separate(workshop, uploaded(workshop))
    separate(workshop, uploaded(workshop, "next.wav", "def"))
    assert files(workshop) == {name.replace("song", "next") for name in ALL}


def test_a_visitor_who_leaves_takes_all_along_but_what_is_anothers(workshop):
    song = uploaded(workshop)
    separate(workshop, song, "ann")
    separate(workshop, song, "ben")
    workshop.forget("ann")
    assert files(workshop) == ALL
    workshop.forget("ben")
    assert files(workshop) == set()


@pytest.mark.parametrize("end", [lambda workshop: workshop.forget("ann"), lambda workshop: workshop.closing()])
def test_a_song_nobody_waits_for_is_stopped(workshop, end):
    song, calls = uploaded(workshop, samples=200_000), []

    def report(done, total):
        calls.append((done, total))
        if len(calls) == 5:
            end(workshop)

    workshop.closing = lambda: threading.Thread(target=workshop.close).start() or time.sleep(0.2)
    with pytest.raises(JobCancelled):
        separate(workshop, song, report=report)
    assert len(calls) == 5
    assert files(workshop) <= {"song.wav"}


def test_who_leaves_at_the_last_moment_leaves_nothing(workshop):
    def leave(done, total):
        if done == total:
            workshop.forget("ann")

    workshop.separate("ann", uploaded(workshop), reading=lambda *_: None, separating=leave)
    assert files(workshop) == set()


def test_after_leaving_one_can_come_back(workshop):
    workshop.forget("ann")
    separate(workshop, uploaded(workshop))
    assert files(workshop) == ALL


def test_what_is_old_is_removed_but_not_what_is_worked_on(workshop):
    song, seen = uploaded(workshop), []
    separate(workshop, uploaded(workshop, "other.wav", "def"), "ben")

    def report(*_):
        workshop.sweep(-1.0)
        seen.append(files(workshop))

    separate(workshop, song, report=report)
    assert all("song.wav" in found and "other.wav" not in found for found in seen)
    workshop.sweep()
    assert files(workshop) == ALL
    workshop.sweep(-1.0)
    assert list(workshop.folder.iterdir()) == []
    with pytest.raises(InputError, match=r"^song\.wav is no longer here; drop it once more$"):
        separate(workshop, song)


def test_a_sentence_names_the_song_and_no_folder(workshop):
    song = uploaded(workshop)
    song.write_text("no sound")
    with pytest.raises(InputError, match=r"^song\.wav ") as error:
        separate(workshop, song)
    assert str(workshop.folder) not in str(error.value)
    assert files(workshop) == {"song.wav"}


# ---------------------------------------------------------------------------- what can be wrong before


def run(**options):
    app.serve(**({"checkpoint": None, "framework": "torch", "device": "cpu", "open_browser": False} | options))


def test_without_gradio_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"the page needs the package gradio; .*pip install 'twinsep\[demo\]'"):
        run()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"limit_mb": 0}, "a limit of 0 MB lets no song through"),
        ({"port": 70_000}, "--port 70000 is no port"),
        ({"host": "nowhere.invalid"}, "--host nowhere.invalid is no address"),
        ({"host": "192.0.2.1"}, "in use or not of this machine"),
    ],
)
def test_an_address_that_cannot_be_is_refused_at_once(monkeypatch, options, sentence):
    monkeypatch.setattr(app, "_require", lambda: None)
    with pytest.raises(InputError, match=sentence):
        run(**options)


def test_a_port_in_use_is_told_of(monkeypatch):
    monkeypatch.setattr(app, "_require", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"^port {port} of 127\.0\.0\.1 is in use .* --port, such as {port + 1}$"):
            run(port=port)


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_an_address_is_of_this_machine_alone_or_not(host, local):
    assert app._check_address(host, free_port()) is local


# ---------------------------------------------------------------------------- in a browser


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as trial:
        return trial.getsockname()[1]


@contextlib.contextmanager
def served(weights, folder, proxy):
    """The page, its files below ``folder``; gives its address. All it would ask of others goes to ``proxy``."""
    folder.mkdir()
    port = free_port()
    environment = os.environ | {"TMPDIR": str(folder), "no_proxy": "", "NO_PROXY": ""}
    environment |= {name: proxy for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    code = (
        "import sys\nfrom pathlib import Path\nfrom twinsep import cli, demo\n"
        "cli.guarded(lambda: demo.run(checkpoint=Path(sys.argv[1]), framework='torch', device='cpu', "
        "port=int(sys.argv[2]), open_browser=False, limit_mb=1))"
    )
    with (folder.parent / "log").open("w+") as log:
        command = [sys.executable, "-c", code, str(weights), str(port)]
        process = subprocess.Popen(command, stderr=log, env=environment)
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
        log.seek(0)
        assert (status, "Traceback" in log.read()) == (0, False)
    assert list(folder.iterdir()) == []


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def answers(address):
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
        return answer.status == 200


def refused(address, megabytes):
    """The status of an upload of that size past the page's own check."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n%b\r\n--x--\r\n'
    request = urllib.request.Request(
        f"{address}gradio_api/upload",
        body % bytes(megabytes << 20),
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=20)
    with error.value as answer:
        return answer.code


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_the_page(micro, tmp_path):
    from playwright.sync_api import sync_playwright

    weights, song, text = tmp_path / "micro.safetensors", tmp_path / "a song.wav", tmp_path / "text.wav"
    checkpoints.write(weights, Checkpoint(micro, Trainer(micro).state()))
    write_song(tmp_path / "stems", seconds=1.0)
    (tmp_path / "stems/mixture.wav").rename(song)
    text.write_text("no sound here")
    with (
        socket.create_server(("127.0.0.1", 0)) as proxy,
        served(weights, tmp_path / "kept", f"http://127.0.0.1:{proxy.getsockname()[1]}") as address,
        sync_playwright() as playwright,
    ):
        batch.separate_files(
            [song], SeparationOptions(out=tmp_path / "command", checkpoint=weights, two_stems="vocals")
        )
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        wait_for(lambda: answers(address), 60)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.set_input_files("#song input[type=file]", text)
        page.get_by_role("alert").get_by_text("text.wav cannot be read as sound").wait_for()
        page.get_by_label("Clear").click()

        page.set_input_files("#song input[type=file]", song)
        for stem in ("instrumental", "vocals"):
            with page.expect_download() as download:
                page.click(f"#download-{stem}")
            download.value.save_as(tmp_path / stem)
            assert download.value.suggested_filename == f"a song ({stem}).wav"
            assert (tmp_path / stem).read_bytes() == (tmp_path / f"command/a song/{stem}.wav").read_bytes()
        for player in ("mixture", "instrumental", "vocals"):
            page.locator(f"#{player}").get_by_text("0:01").first.wait_for()
        page.wait_for_function("[...document.images].some(image => image.naturalWidth == 820)")
        assert all(url.startswith((address, "blob:", "data:")) for url in asked), asked
        assert "Traceback" not in page.content()
        assert len([path for path in (tmp_path / "kept").rglob("*") if "song" in path.name]) > 4

        assert refused(address, megabytes=2) == 413
        assert not answers(address.replace("127.0.0.1", "127.0.0.2"))
        page.close()
        browser.close()
        wait_for(lambda: not any(path.is_file() and path.stat().st_size for path in (tmp_path / "kept").rglob("*")))
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
