"""The ``twinsep demo`` command: a local web page that separates songs and keeps none of them."""

# No `from __future__ import annotations`: Gradio evaluates annotations, and cannot see names imported in a function.
import html
import importlib.util
import ipaddress
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import twinsep
from twinsep.audio import spectrogram
from twinsep.demo.jobs import JobQueue
from twinsep.errors import Cancelled, InputError, TwinsepError
from twinsep.separation import batch, reporters
from twinsep.utils.backend import choose_device
from twinsep.utils.env import temporary_env

if TYPE_CHECKING:
    import gradio

#: How often Gradio looks for old files, and the age at which it deletes them, in seconds.
_DELETE_CACHE = (60, 3600)
_INTRODUCTION = """# twinsep
Drop a song to hear its instrumental and its vocals. {model} separates it on this machine. Your files are deleted when
you close the page, or after about an hour."""
_HINT = "Both stems together are the song. Solo plays a stem alone, Mute leaves it out."
#: Script and style of the player.
_PLAYER = Path(__file__).with_name("player.js"), Path(__file__).with_name("player.css")


def serve(
    *,
    checkpoint: Path | None,
    framework: str,
    device: str,
    host: str,
    port: int,
    limit_mb: int,
    open_browser: bool,
) -> None:
    """Serve the page on ``host`` and ``port`` until Ctrl-C or SIGTERM; call this in the main thread.

    Uploads are limited to ``limit_mb`` megabytes. All files lie in one temporary folder, which is removed before this
    returns. Raises :class:`InputError` if Gradio or matplotlib is missing, the address cannot be used or the limit is
    below 1, and as :func:`twinsep.load` does.
    """
    _require_packages()
    if limit_mb < 1:
        raise InputError(f"--limit {limit_mb} MB accepts no song; set it to 1 or more")
    is_local = _check_address(host, port)
    with reporters.open_reporter(as_json=False) as reporter:
        weights = batch.choose_checkpoint(checkpoint, reporter)
        device = choose_device(framework, device, reporter.message)
        separator = twinsep.load(weights, framework, device=device)
    with tempfile.TemporaryDirectory(prefix="twinsep-demo-") as folder, temporary_env(_environment(folder, host)):
        jobs = JobQueue(separator, Path(folder))
        page = build_page(jobs, f"{Path(weights).name} ({framework}, {device})")
        try:
            _launch(page, host, port, limit_mb)
            _wait(_address(host, port), is_local=is_local, open_browser=open_browser)
        finally:
            page.close(verbose=False)
            jobs.close()


def _require_packages() -> None:
    spectrogram.require_matplotlib()
    # Found, not imported: the import creates a folder, and GRADIO_TEMP_DIR is not set yet.
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the demo needs the package gradio; install it with: pip install 'twinsep[demo]'")


# ---------------------------------------------------------------------------- the page


def build_page(jobs: JobQueue, model: str) -> "gradio.Blocks":
    """Build the page: an upload area, one player for both stems, two download buttons and the spectrograms.

    ``model`` names the model to the user.
    """
    import gradio as gr

    with gr.Blocks(title="twinsep", analytics_enabled=False, delete_cache=_DELETE_CACHE) as page:
        gr.Markdown(_INTRODUCTION.format(model=html.escape(model)))
        song = gr.File(label="Song", elem_id="song", height=150)
        status = gr.HTML(elem_id="status", min_height=24)
        with gr.Column(visible=False, elem_id="result") as result:
            script, style = (path.read_text(encoding="utf-8") for path in _PLAYER)
            player = gr.HTML(
                html_template='<div class="player"></div>', js_on_load=script, css_template=style, elem_id="player"
            )
            gr.Markdown(_HINT)
            with gr.Row():
                files = [
                    gr.DownloadButton(f"Download {stem}", variant="primary", elem_id=f"download-{stem}")
                    for stem in ("instrumental", "vocals")
                ]
            spectrograms = gr.Image(
                show_label=False,
                alt_text="Spectrograms of mixture, instrumental and vocals, and the mask",
                type="filepath",
                format="png",
                interactive=False,
                buttons=["fullscreen"],
            )
        outputs = [status, result, player, *files, spectrograms]
        bar = gr.Progress()

        def separate(song: str, request: gr.Request, progress: gr.Progress = bar) -> list[Any]:
            def reading(done: int, total: int) -> None:
                if done < total:
                    progress(done / total, desc="reading")
                else:
                    progress(0.0, desc="separating")

            def separating(done: int, total: int) -> None:
                progress(done / total, desc="separating")

            try:
                made = jobs.separate(str(request.session_hash), Path(song), reading=reading, separating=separating)
            except Cancelled:
                return [gr.skip()] * len(outputs)
            except (TwinsepError, OSError) as error:
                sentence = str((error.strerror if isinstance(error, OSError) else None) or error)
                return [_alert(sentence), *[gr.skip()] * (len(outputs) - 1)]
            notes = "".join(f"<p>{html.escape(note)}</p>" for note in made.notes)
            stems = [str(made.instrumental), str(made.vocals)]
            sounds = [
                {"name": name, "file": gr.FileData(path=path, orig_name=Path(path).name).model_dump()}
                for name, path in zip(("Instrumental", "Vocals"), stems, strict=True)
            ]
            return [notes, gr.Column(visible=True), sounds, *stems, str(made.spectrograms)]

        def cancel(request: gr.Request) -> None:
            jobs.cancel(str(request.session_hash))

        def clear(request: gr.Request) -> list[Any]:
            cancel(request)
            return ["", gr.Column(visible=False), *[None] * (len(outputs) - 2)]

        upload = song.upload(
            separate,
            song,
            outputs,
            show_progress_on=status,
            concurrency_limit=1,
            trigger_mode="multiple",
            api_visibility="private",
        )
        # Gradio cancels an upload that waits for its turn, `clear` one that is being separated.
        song.clear(clear, None, outputs, cancels=upload, show_progress="hidden", api_visibility="private")
        page.unload(cancel)
    return page.queue(api_open=False)


def _alert(sentence: str) -> str:
    return f'<p role="alert" style="color: var(--error-text-color); font-weight: 600">{html.escape(sentence)}</p>'


# ---------------------------------------------------------------------------- the server


def _launch(page: "gradio.Blocks", host: str, port: int, limit_mb: int) -> None:
    import gradio as gr

    try:
        page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            share=False,
            inbrowser=False,
            inline=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=f"{limit_mb}mb",
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=gr.themes.Default(),  # its fonts come with Gradio, not from a CDN
        )
    except OSError as error:  # another process has taken the port since it was checked
        raise _unavailable(host, port) from error


def _wait(address: str, *, is_local: bool, open_browser: bool) -> None:
    """Print the address, open it in a browser if asked, and return after Ctrl-C or SIGTERM."""
    console = Console(stderr=True)
    if not is_local:
        console.print(
            "warning: anyone who can reach this machine can use the page; omit --host to keep it to this machine",
            soft_wrap=True,
        )
    console.print(f"the page is at {address} until you press Ctrl-C", soft_wrap=True, highlight=False)
    # Without a display, webbrowser may start a text browser, which takes over the terminal.
    if open_browser and (sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)):
        import webbrowser

        webbrowser.open(address)
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not ended.wait(1.0):  # seconds; a signal that another thread received does not wake this one
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_address(host: str, port: int) -> bool:
    """Return True if only this machine can reach ``host``; raise :class:`InputError` if the address cannot be used."""
    if not 1 <= port <= 65_535:
        raise InputError(f"--port {port} is not a port; choose one from 1 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} is not an address; use 127.0.0.1 for this machine only") from error
    with socket.socket(family, kind) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, to restart without a wait
        try:
            trial.bind(address)
        except PermissionError as error:
            raise InputError(f"port {port} needs more rights; choose another with --port, such as 7861") from error
        except OSError as error:
            raise _unavailable(host, port) from error
    return ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback


def _unavailable(host: str, port: int) -> InputError:
    other = port + 1 if port < 65_535 else 7860
    return InputError(
        f"port {port} of {host} is in use or not on this machine; choose another with --port, such as {other}"
    )


def _address(host: str, port: int) -> str:
    """Return the URL to open on this machine; 0.0.0.0 and :: stand for all addresses and cannot be opened."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _environment(folder: str, host: str) -> dict[str, str]:
    """Settings for Gradio: its files in ``folder``, no analytics, and no proxy between it and its own page."""
    values = {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
    for name in ("no_proxy", "NO_PROXY"):
        values[name] = ",".join(filter(None, [os.environ.get(name), host, "localhost", "127.0.0.1"]))
    return values
