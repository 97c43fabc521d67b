"""Job queue of the demo: which files a job makes, and when they go."""

import threading
import time

import numpy as np
import pytest
import soundfile

from ablations.fault_injection import RATE
from twinsep import audio
from twinsep.audio import spectrogram
from twinsep.config import preset
from twinsep.demo.jobs import JobQueue
from twinsep.errors import Cancelled, InputError
from twinsep.separation.overlap_add import ChunkGrid
from twinsep.separation.separator import Separator

FILES = {"song (instrumental).wav", "song (vocals).wav", "song (spectrograms).png"}


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.setattr(spectrogram, "draw_spectrograms", lambda *_, **__: b"\x89PNG")
    (tmp_path / "files").mkdir()
    return JobQueue(Separator(lambda x: 0.5 * x[:, None], preset("tiny"), ChunkGrid(4096)), tmp_path / "files")


def noise(samples):
    return (0.2 * np.random.default_rng(0).standard_normal((2, samples))).astype(np.float32)


def upload(queue, name="song.wav", samples=20_000):
    """Write a song where Gradio would: in a folder named after its content."""
    path = queue.folder / "abc" / name
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, noise(samples).T, RATE)
    return path


def separate(queue, song, session="ann", reading=lambda *_: None, separating=lambda *_: None):
    return queue.separate(session, song, reading=reading, separating=separating)


def files(queue):
    return {path.name for path in queue.folder.rglob("*") if path.is_file()}


def test_a_job_makes_stems_and_spectrograms_and_removes_the_upload(queue):
    song = upload(queue)
    uploaded = audio.read(song)[0]
    result = separate(queue, song)
    assert result.spectrograms.read_bytes().startswith(b"\x89PNG")
    stems = [audio.read(path)[0] for path in (result.instrumental, result.vocals)]
    np.testing.assert_allclose(sum(stems), uploaded, atol=3e-7)
    assert files(queue) == FILES


def test_a_new_job_replaces_the_session_s_previous_one(queue):
    separate(queue, upload(queue))
    separate(queue, upload(queue, "next.wav"))
    assert files(queue) == {name.replace("song", "next") for name in FILES}


def test_cancelling_a_session_removes_its_files_and_no_others(queue):
    separate(queue, upload(queue), "ann")
    separate(queue, upload(queue, "next.wav"), "ben")
    queue.cancel("ann")
    assert files(queue) == {name.replace("song", "next") for name in FILES}
    queue.cancel("ben")
    assert files(queue) == set()


def test_jobs_of_two_sessions_share_no_folder(queue):
    results = [separate(queue, upload(queue), session) for session in ("ann", "ben")]
    assert results[0].vocals.parent != results[1].vocals.parent


@pytest.mark.parametrize("stage", ["reading", "separating"])
def test_a_cancelled_job_stops_and_leaves_nothing(queue, stage):
    calls = []

    def report(done, total):
        calls.append((done, total))
        if len(calls) == 2:
            queue.cancel("ann")

    with pytest.raises(Cancelled):
        separate(queue, upload(queue, samples=400_000), **{stage: report})
    assert len(calls) == 2
    assert files(queue) == set()


def test_a_job_cancelled_at_its_last_chunk_leaves_nothing(queue):
    def cancel(done, total):
        if done == total:
            queue.cancel("ann")

    with pytest.raises(Cancelled):
        separate(queue, upload(queue), separating=cancel)
    assert files(queue) == set()


def test_closing_the_queue_stops_the_job_and_waits_for_it(queue):
    closing = threading.Thread(target=queue.close)
    calls = []

    def report(*_):
        calls.append(closing.is_alive())
        if len(calls) == 5:
            closing.start()
            time.sleep(0.2)

    with pytest.raises(Cancelled):
        separate(queue, upload(queue, samples=200_000), separating=report)
    closing.join(20)
    assert len(calls) == 5
    assert files(queue) == set()
    with pytest.raises(Cancelled):
        separate(queue, upload(queue))


def test_a_session_can_go_on_after_it_was_cancelled(queue):
    queue.cancel("ann")
    separate(queue, upload(queue))
    assert files(queue) == FILES


def test_an_upload_that_is_gone_is_refused(queue):
    with pytest.raises(InputError, match=r"^song\.wav is no longer here; drop it again$"):
        separate(queue, queue.folder / "abc" / "song.wav")


def test_an_error_names_the_song_without_its_folder_and_removes_it(queue):
    song = upload(queue)
    song.write_text("no sound")
    with pytest.raises(InputError, match=r"^song\.wav ") as error:
        separate(queue, song)
    assert str(queue.folder) not in str(error.value)
    assert files(queue) == set()
