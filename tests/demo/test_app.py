"""The demo page: same stems as the command, one session's files hidden from others, nothing kept."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from ablations.fault_injection import write_song
from torch_impl.train import Trainer
from twinsep import checkpoints
from twinsep.checkpoints import Checkpoint
from twinsep.demo import app
from twinsep.errors import InputError
from twinsep.separation import batch
from twinsep.separation.batch import SeparationOptions

CHROMIUM = shutil.which("chromium")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync"""


# ---------------------------------------------------------------------------- refusals


#: Options of a server on this machine, without a browser.
LOCAL = {"framework": "torch", "device": "cpu", "host": "127.0.0.1", "open_browser": False}


def run(**options):
    app.serve(**({"checkpoint": None, "port": 7860, "limit_mb": 1} | LOCAL | options))


def test_without_gradio_the_error_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"the demo needs the package gradio; .*pip install 'twinsep\[demo\]'"):
        run()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"limit_mb": 0}, "--limit 0 MB accepts no song"),
        ({"port": 70_000}, "--port 70000 is not a port"),
        ({"host": "nowhere.invalid"}, "--host nowhere.invalid is not an address"),
        ({"host": "192.0.2.1"}, "in use or not on this machine"),
    ],
)
def test_an_impossible_address_or_limit_is_refused(monkeypatch, options, sentence):
    monkeypatch.setattr(app, "_require_packages", lambda: None)
    with pytest.raises(InputError, match=sentence):
        run(**options)


def test_a_port_in_use_is_refused_with_another_to_try(monkeypatch):
    monkeypatch.setattr(app, "_require_packages", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"^port {port} of 127\.0\.0\.1 is in use .* --port, such as {port + 1}$"):
            run(port=port)


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_only_loopback_addresses_count_as_local(host, local):
    assert app._check_address(host, free_port()) is local


# ---------------------------------------------------------------------------- the server


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as trial:
        return trial.getsockname()[1]


@contextlib.contextmanager
def served(weights, folder, proxy="http://127.0.0.1:9", delete_cache=app._DELETE_CACHE):
    """Serve the page in a process, its files below ``folder``, and yield its URL; other hosts are behind ``proxy``."""
    folder.mkdir()
    port = free_port()
    environment = os.environ | {"TMPDIR": str(folder), "no_proxy": "", "NO_PROXY": ""}
    environment |= {name: proxy for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    code = (
        "import sys\nfrom pathlib import Path\nfrom twinsep.demo import app\nfrom twinsep.errors import guarded\n"
        f"app._DELETE_CACHE = {delete_cache}\n"
        f"guarded(lambda: app.serve(checkpoint=Path(sys.argv[1]), port=int(sys.argv[2]), limit_mb=1, **{LOCAL}))"
    )
    with (folder.parent / "log").open("w+") as log:
        command = [sys.executable, "-X", "faulthandler", "-c", code, str(weights), str(port)]
        process = subprocess.Popen(command, stderr=log, env=environment)
        try:
            wait_for(lambda: answers(f"http://127.0.0.1:{port}/"), 60)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(60)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # faulthandler prints where every thread stands
                process.wait(60)
                log.seek(0)
                pytest.fail(f"the server did not end: {log.read()}")
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
    """Return the HTTP status of an upload of that size, sent past the page's own check."""
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


class Client:
    """One open page, as the server sees it: uploads, events and the heartbeat that says it is still open."""

    def __init__(self, address, session):
        self.address, self.api, self.session = address, f"{address}gradio_api", session
        self.heartbeat = urllib.request.urlopen(f"{self.api}/heartbeat/{session}", timeout=20)

    def post(self, path, body, kind="application/json"):
        request = urllib.request.Request(f"{self.api}/{path}", body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def upload(self, path):
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + b"\r\n--x--\r\n"
        return self.post("upload", body, "multipart/form-data; boundary=x")[0]

    def call(self, trigger, *data):
        """Trigger an event and return its outputs."""
        with urllib.request.urlopen(f"{self.address}config", timeout=20) as answer:
            events = json.load(answer)["dependencies"]
        number = next(
            e["id"] for e in events if e["backend_fn"] and any(target[1] == trigger for target in e["targets"])
        )
        event = {"data": data, "fn_index": number, "session_hash": self.session}
        self.post("queue/join", json.dumps(event).encode())
        with urllib.request.urlopen(f"{self.api}/queue/data?session_hash={self.session}", timeout=60) as messages:
            for line in messages:
                if line.startswith(b"data:") and (found := json.loads(line[5:]))["msg"] == "process_completed":
                    assert found["success"], found
                    return found["output"]["data"]
        raise AssertionError(f"{trigger}: no answer")

    def separate(self, path):
        """Upload a song, wait for its turn and return the outputs."""
        return self.call("upload", {"path": self.upload(path), "meta": {"_type": "gradio.FileData"}})


@pytest.fixture
def song(tmp_path):
    write_song(tmp_path / "stems", seconds=1.0)
    return (tmp_path / "stems/mixture.wav").rename(tmp_path / "a song.wav")


@pytest.fixture
def weights(micro, tmp_path):
    checkpoints.write(tmp_path / "micro.safetensors", Checkpoint(micro, Trainer(micro).state()))
    return tmp_path / "micro.safetensors"


@pytest.mark.skipif("gradio" in MISSING, reason="not installed: gradio")
def test_files_go_when_their_page_is_closed_or_cleared_or_when_they_are_old(weights, song, tmp_path):
    def files(name):
        return {path.name for path in (tmp_path / "files").rglob(f"{name}*") if path.is_file()}

    with served(weights, tmp_path / "files", delete_cache=(1, 6)) as address:
        ann, ben, cat = (Client(address, name) for name in ("ann", "ben", "cat"))
        for client in (cat, ann, ben):  # the first one's files grow old meanwhile
            outputs = client.separate(shutil.copy(song, song.with_name(f"{client.session}.wav")))
            player, *others = outputs[2:]
            assert {output["orig_name"] for output in others} == files(client.session)
            assert {stem["file"]["orig_name"] for stem in player} < files(client.session)
            with urllib.request.urlopen(outputs[3]["url"], timeout=20) as stem:
                assert len(stem.read()) > 100_000
            if client is ann:
                client.heartbeat.close()
                wait_for(lambda: not files("ann"), 5)
            elif client is ben:
                assert client.call("clear")[2:] == [None] * 4
                assert not files("ben")
        wait_for(lambda: not files("cat"))
        for client in (ben, cat):
            client.heartbeat.close()


# ---------------------------------------------------------------------------- in a browser


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_the_page_in_a_browser_gives_the_stems_of_the_command(weights, song, tmp_path):
    from playwright.sync_api import sync_playwright

    text = tmp_path / "text.wav"
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
        page = browser.new_page()
        page.set_default_timeout(60_000)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.set_input_files("#song input[type=file]", text)
        page.get_by_role("alert").get_by_text("text.wav cannot be read as sound").wait_for()
        # Clearing also cancels what an upload began: the next song must not come before the server has heard of it.
        with page.expect_response(lambda response: "/queue/join" in response.url):
            page.get_by_label("Clear").click()
        page.get_by_label("Clear").wait_for(state="hidden")

        page.set_input_files("#song input[type=file]", song)
        for stem in ("instrumental", "vocals"):
            with page.expect_download() as download:
                page.click(f"#download-{stem}")
            download.value.save_as(tmp_path / stem)
            assert download.value.suggested_filename == f"a song ({stem}).wav"
            assert (tmp_path / stem).read_bytes() == (tmp_path / f"command/a song/{stem}.wav").read_bytes()
        player = page.locator("#player")
        player.get_by_text("0:00 / 0:01").wait_for()
        player.get_by_role("button", name="Solo Vocals").press("Enter")
        player.get_by_role("button", name="Mute Instrumental").press("Space")
        assert player.get_by_role("button", pressed=True).all_inner_texts() == ["Mute", "Solo"]
        player.get_by_role("slider", name="Volume of Vocals").press("ArrowLeft")
        player.get_by_role("button", name="Play").press("Enter")
        page.wait_for_function("document.querySelector('#player .play').textContent == 'Pause'")
        player.get_by_role("button", name="Play").wait_for()  # after a second, at the end of the song
        page.wait_for_function("[...document.images].some(image => image.naturalWidth == 820)")
        assert all(url.startswith((address, "blob:", "data:")) for url in asked), asked
        assert "Traceback" not in page.content()
        kept = {path.name for path in (tmp_path / "kept").rglob("*song*") if path.is_file()}
        assert kept == {"a song (instrumental).wav", "a song (vocals).wav", "a song (spectrograms).png"}

        assert refused(address, megabytes=2) == 413
        assert not answers(address.replace("127.0.0.1", "127.0.0.2"))
        page.close()
        browser.close()
        wait_for(lambda: not any(path.is_file() and path.stat().st_size for path in (tmp_path / "kept").rglob("*")))
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
