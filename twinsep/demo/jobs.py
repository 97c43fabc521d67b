"""Job queue of the demo: separate uploads one at a time and keep each session's files apart."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from twinsep.errors import Cancelled, InputError
from twinsep.separation import batch, file
from twinsep.separation.file import Encoding
from twinsep.separation.paths import SPECTROGRAMS, FilenameTemplate, SongFile, track_name
from twinsep.separation.separator import Separator
from twinsep.utils.files import display_path
from twinsep.utils.progress import ProgressCallback


@dataclass(frozen=True)
class JobResult:
    """Files made from a song, which is deleted, and notes (:class:`twinsep.separation.file.SeparationResult`)."""

    instrumental: Path
    vocals: Path
    spectrograms: Path
    notes: list[str]


@dataclass(frozen=True)
class _Job:
    folder: Path
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Mark the job as cancelled and remove its folder."""
        self.cancelled.set()
        shutil.rmtree(self.folder, ignore_errors=True)


class JobQueue:
    """Separates uploads one at a time; each job has a folder of its own below ``folder``.

    A session (one open page) has at most one job. Raises :class:`InputError` for a separator without vocals.
    """

    def __init__(self, separator: Separator, folder: Path):
        self.separator, self.folder = separator, folder
        self.stems = separator.names("vocals")
        self._turn = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._closed = False

    def separate(
        self, session: str, upload: Path, *, reading: ProgressCallback, separating: ProgressCallback
    ) -> JobResult:
        """Wait for this job's turn, then write the same stems as ``twinsep separate --two-stems vocals``.

        The upload moves into the job's folder, which replaces the session's previous one. ``reading`` and
        ``separating`` are passed to :func:`twinsep.separation.file.separate_file`. Raises :class:`Cancelled` after
        :meth:`cancel` or :meth:`close`, and :class:`InputError` as ``separate_file`` does, without this machine's
        folders in the sentence.
        """
        with self._turn:
            self.cancel(session)
            if not upload.is_file():
                raise InputError(f"{display_path(upload.name)} is no longer here; drop it again")
            job = self._jobs[session] = _Job(Path(tempfile.mkdtemp(prefix="job-", dir=self.folder)))
            try:
                # Gradio would keep the upload for an hour after the session has ended.
                song = upload.rename(job.folder / upload.name)
                result = self._separate(job, song, reading, separating)
                self._check(job)
            except BaseException as error:
                is_cancelled = job.cancelled.is_set()
                job.cancel()
                if is_cancelled:  # whatever failed, it failed because the folder is gone
                    raise Cancelled("cancelled") from error
                if isinstance(error, InputError):
                    raise InputError(str(error).replace(f"{job.folder}/", "")) from error
                raise
            return result

    def _check(self, job: _Job) -> None:
        if self._closed or job.cancelled.is_set():
            raise Cancelled("cancelled")

    def _separate(self, job: _Job, song: Path, reading: ProgressCallback, separating: ProgressCallback) -> JobResult:
        def checked(callback: ProgressCallback) -> ProgressCallback:
            def run(done: int, total: int) -> None:
                self._check(job)
                callback(done, total)

            return run

        options = batch.SeparationOptions(out=job.folder, filename="{track} ({stem}).{ext}", figure=True)
        named = SongFile(song, track_name(song), job.folder, is_named=True)
        paths = batch.output_paths(named, options, FilenameTemplate(options.filename), self.stems)
        spectrograms = paths.pop(SPECTROGRAMS)
        result = file.separate_file(
            song,
            paths,
            self.separator,
            Encoding(),
            figure=spectrograms,
            reading=checked(reading),
            separating=checked(separating),
        )
        song.unlink()  # the stems add up to it
        return JobResult(paths["instrumental"], paths["vocals"], spectrograms, result.notes)

    def cancel(self, session: str) -> None:
        """Stop the session's job, if any, and remove its files."""
        job = self._jobs.pop(session, None)
        if job:
            job.cancel()

    def close(self) -> None:
        """Stop the current job and refuse new ones; return once nothing is written any more."""
        self._closed = True
        with self._turn:
            pass
