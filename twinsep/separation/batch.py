"""Many songs: files and folders in, stems out, each stem written whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import twinsep
from twinsep import audio
from twinsep.audio import remux, spectrogram
from twinsep.audio.reading import MAX_CHANNELS
from twinsep.audio.writing import supports
from twinsep.config import PRESETS, Config, Executor
from twinsep.errors import InputError, Interrupted, TwinsepError
from twinsep.separation.file import Encoding, Excerpt, SeparationResult, separate_file
from twinsep.separation.overlap_add import Chunking
from twinsep.separation.paths import ALL_STEMS, FILM, SPECTROGRAMS, STEM_MP4, FilenameTemplate, SongFile, find_songs
from twinsep.separation.places import Outputs, Places, find_places
from twinsep.separation.reporters import Reporter, SilentReporter, open_reporter
from twinsep.separation.separator import Separator, read_config, stems_of, with_complement
from twinsep.utils import cluster
from twinsep.utils.backend import AUTO, choose_device
from twinsep.utils.files import display_path
from twinsep.utils.progress import ProgressCallback

#: Checkpoint of ``separate`` without ``--checkpoint``: in the current folder, or in the checkout it runs from.
BASE_CHECKPOINT = Path("results/weights/torch-base/0.safetensors")
#: Stands in ``--out`` for the folder of each song.
FOLDER = "{folder}"


@dataclass(frozen=True)
class SeparationOptions:
    """The options of ``twinsep separate``, with their defaults."""

    #: Folder for the stems, in which {folder} is that of the song, and their place in it.
    out: Path = Path("separated")
    filename: str = FilenameTemplate.text
    #: Trained weights; the base run's if None.
    checkpoint: Path | None = None
    #: Write this stem and the rest of the song, or this stem alone; by default the stems that the model estimates.
    two_stems: str | None = None
    stem: str | None = None
    #: Format of the stems, without a dot; the song's own if None, or WAV where that cannot be written. "stem.mp4" is
    #: one file of them all.
    extension: str | None = None
    encoding: Encoding = field(default_factory=Encoding)
    chunking: Chunking = field(default_factory=Chunking)
    #: Average over swapped channels and inverted polarity.
    augmented: bool = False
    overwrite: bool = False
    recursive: bool = False
    #: Separate more than two channels in pairs.
    pairs: bool = False
    #: Draw spectrograms of song, stems and mask.
    figure: bool = False
    framework: str = "torch"
    device: str = AUTO
    as_json: bool = False
    #: Pass over songs whose stems are there, and write only stems that are not.
    skip_existing: bool = False
    excerpt: Excerpt = field(default_factory=Excerpt)
    #: Write the film of a song too, with each stem as its sound.
    remux: bool = False
    #: Where songs are separated: one after the other in this process, or side by side on a Ray cluster.
    executor: Executor = "local"


def separate_files(paths: list[Path], options: SeparationOptions) -> None:
    """Separate the files and the songs in the folders ``paths``.

    If a song fails, the reporter shows why and the batch goes on. Raises :class:`InputError`, before any work, for
    options that cannot be met; at the end its own error for a single song, or a sentence that counts the failures.
    Ctrl-C raises :class:`Interrupted` with a sentence that says what is finished.
    """
    template = FilenameTemplate(options.filename)
    _check_format(options)
    if options.two_stems and options.stem:
        raise InputError("--two-stems and --stem exclude each other: choose one")
    if options.overwrite and options.skip_existing:
        raise InputError("--overwrite and --skip-existing exclude each other: choose one")
    if options.figure:
        spectrogram.require_matplotlib()
    out = None if FOLDER in str(options.out) else options.out
    songs = find_songs(paths, out, recursive=options.recursive)
    with open_reporter(as_json=options.as_json) as reporter:
        model = _Model(options, reporter)
        stems = _stems(options, model)
        if out is None:
            songs = _without_stems(songs, options, template, model.stems)
        places = find_places(songs, lambda song: output_paths(song, options, template, stems))
        for message in places.messages:
            reporter.message(message)
        batch = _Batch if options.executor == "local" else _ClusterBatch
        batch(songs, places, stems, options, model, reporter).run()


class _Model:
    """The model of a batch; with ``skip_existing``, and on a cluster, it is loaded only once a song needs it."""

    def __init__(self, options: SeparationOptions, reporter: Reporter):
        self._options, self._reporter = options, reporter
        self._loaded: Separator | None = None
        lazy = options.skip_existing or options.executor != "local"
        config = _read_config(options) if lazy else self.separator.config
        #: Stems that can be written, and those that the model estimates.
        self.stems, self.estimated = stems_of(config), config.model.stems

    @property
    def separator(self) -> Separator:
        """The loaded model."""
        if self._loaded is None:
            self._loaded = _load(self._options, self._reporter)
        return self._loaded


class _Batch:
    """The songs of a call, one after the other."""

    def __init__(
        self,
        songs: list[SongFile],
        places: Places,
        stems: tuple[str, ...],
        options: SeparationOptions,
        model: _Model,
        reporter: Reporter,
    ):
        self.songs, self.places, self.stems = songs, places, stems
        self.options, self.model, self.reporter = options, model, reporter
        self.finished: list[SongFile] = []
        self.skipped: list[SongFile] = []
        self.failed: dict[SongFile, TwinsepError] = {}

    def run(self) -> None:
        """Separate the songs; raises as :func:`separate_files` does."""
        total = len(self.songs)
        for number, song in enumerate(self.songs, 1):
            paths = self._missing(self.places.outputs.get(song, {}))
            if song in self.places.outputs and not paths:
                self.skipped.append(song)
                self.reporter.on_skipped(song.path)
                continue
            callbacks = self.reporter.on_start(song.path, number, total)
            try:
                info = self._check(song, paths, callbacks[0])
            except KeyboardInterrupt as error:
                raise self._interrupted() from error
            except TwinsepError as error:
                self._fail(song, error)
                continue
            separator = self.model.separator  # an error here is the batch's, not the song's
            try:
                result = self._separate(song, paths, separator, info, callbacks[1])
            except KeyboardInterrupt as error:
                raise self._interrupted() from error
            except TwinsepError as error:
                self._fail(song, error)
            else:
                self.finished.append(song)
                self.reporter.on_written(song.path, result)
        self._end()

    def _end(self) -> None:
        total = len(self.songs)
        self.reporter.on_end(len(self.finished), len(self.skipped), total)
        if self.failed and total == 1:
            raise next(iter(self.failed.values()))
        if self.failed:
            raise InputError(f"{len(self.failed)} of {total} songs failed, see above: {_list_names([*self.failed])}")

    def finish(self, song: SongFile) -> SeparationResult:
        """Check and separate one song; raises :class:`TwinsepError` for its faults."""
        paths = self._missing(self.places.outputs.get(song, {}))
        reading, separating = self.reporter.on_start(song.path, 1, 1)
        info = self._check(song, paths, reading)
        return self._separate(song, paths, self.model.separator, info, separating)

    def _missing(self, paths: Outputs) -> Outputs:
        """The files to write."""
        if not self.options.skip_existing:
            return paths
        missing = {stem: path for stem, path in paths.items() if not _exists(path)}
        # Rescaled stems share a factor, so that some of them cannot be made alone.
        return paths if missing and self.options.encoding.clip_mode == "rescale" else missing

    def _check(self, song: SongFile, paths: Outputs, reading: ProgressCallback) -> audio.AudioInfo:
        """Decode the song, if its stems may be written; raises :class:`InputError` for its faults."""
        if song in self.places.refused:
            raise self.places.refused[song]
        if not self.options.overwrite and (there := next(filter(_exists, paths.values()), None)):
            raise InputError(
                f"{display_path(there)} exists; pass --overwrite to replace it, --skip-existing to pass over songs "
                "that are done, or choose another --out"
            )
        if self.options.remux:
            remux.check_film(song.path)
        return audio.verify(song.path, max_channels=self._max_channels, report=reading)

    @property
    def _max_channels(self) -> int:
        return MAX_CHANNELS if self.options.pairs else 2

    def _separate(
        self,
        song: SongFile,
        paths: Outputs,
        separator: Separator,
        info: audio.AudioInfo,
        separating: ProgressCallback,
    ) -> SeparationResult:
        result = separate_file(
            song.path,
            {stem: path for stem, path in paths.items() if stem not in (SPECTROGRAMS, ALL_STEMS, *self._films)},
            separator,
            self.options.encoding,
            overwrite=self.options.overwrite,
            figure=paths.get(SPECTROGRAMS),
            stem_mp4=(paths[ALL_STEMS], self.stems) if ALL_STEMS in paths else None,
            max_channels=self._max_channels,
            excerpt=self.options.excerpt,
            checked=info,
            separating=separating,
        )
        for film, stem in self._films.items():
            if film in paths:
                sound = self.places.outputs[song][stem]
                remux.replace_sound(song.path, sound, paths[film], overwrite=self.options.overwrite)
                result.paths[film] = paths[film]
        return result

    @property
    def _films(self) -> dict[str, str]:
        """Name of the film with a stem → the stem."""
        return {f"{stem}{FILM}": stem for stem in self.stems}

    def _fail(self, song: SongFile, error: TwinsepError) -> None:
        self.failed[song] = error
        self.reporter.on_failed(song.path, str(error))

    def _interrupted(self) -> Interrupted:
        done = f"{len(self.finished)} of {len(self.songs)} songs are finished"
        names = f" ({_list_names(self.finished)})" if self.finished else ""
        self.reporter.on_interrupted(len(self.finished), len(self.songs))
        return Interrupted(f"interrupted: {done}{names}; no half-written stem is left")


class _ClusterBatch(_Batch):
    """The songs of a call, side by side on a Ray cluster; a worker that dies costs the song it was at."""

    def run(self) -> None:
        """Separate the songs; raises as :func:`separate_files` does."""
        total, wanted = len(self.songs), []
        for song in self.songs:
            if song in self.places.outputs and not self._missing(self.places.outputs[song]):
                self.skipped.append(song)
                self.reporter.on_skipped(song.path)
            else:
                wanted.append(song)
        gpus = 1 if self.options.device.startswith(("cuda", "gpu")) else 0
        choose_checkpoint(self.options.checkpoint, self.reporter)  # says which
        work = partial(
            _separate_on_worker, places=self.places, stems=self.stems, options=self.options, folder=Path.cwd()
        )
        try:
            for number, (song, result, error) in enumerate(cluster.run(work, wanted, gpus=gpus), 1):
                self.reporter.on_start(song.path, number, total)
                if error is not None:
                    self._fail(song, error)
                else:
                    self.finished.append(song)
                    self.reporter.on_written(song.path, result)
        except KeyboardInterrupt as error:
            raise self._interrupted() from error
        self._end()


def _separate_on_worker(
    song: SongFile, places: Places, stems: tuple[str, ...], options: SeparationOptions, folder: Path
) -> SeparationResult:
    """Separate one song in a worker of a cluster, which loads the model once; paths are relative to ``folder``."""
    os.chdir(folder)
    return _Batch([song], places, stems, options, _worker_model(options), SilentReporter()).finish(song)


@lru_cache(maxsize=1)
def _worker_model(options: SeparationOptions) -> _Model:
    return _Model(options, SilentReporter())


def _exists(path: Path) -> bool:
    """``os.path.lexists``, which is False for an impossible name: writing it says why."""
    return os.path.lexists(path)


def _without_stems(
    songs: list[SongFile], options: SeparationOptions, template: FilenameTemplate, stems: tuple[str, ...]
) -> list[SongFile]:
    """The songs without those that an earlier call wrote beside another song; named ones stay."""
    known = (*stems, *(with_complement(stem, stems)[1] for stem in stems if stem != "residual"), "instrumental")
    written = set()
    for song in songs:
        folder, track = _place(song, options)
        for stem in known:
            for extension in (*audio.FORMATS, ".m4a", f".{remux.film_extension(song.path)}"):
                written.add(os.path.realpath(template.path(folder, track, stem, extension[1:])))
        written.add(os.path.realpath(folder / f"{track}.{STEM_MP4}"))
    return [song for song in songs if song.is_named or os.path.realpath(song.path) not in written]


def _list_names(songs: list[SongFile]) -> str:
    return ", ".join(display_path(song.path.name) for song in songs[:5]) + (" …" if len(songs) > 5 else "")


def _check_format(options: SeparationOptions) -> None:
    """Raise :class:`InputError` if the chosen format cannot hold the chosen samples."""
    extension, subtype = options.extension, options.encoding.subtype
    if options.remux and (options.extension == STEM_MP4 or options.excerpt != Excerpt()):
        raise InputError("--remux excludes --stem-mp4, --start and --length: leave one of them out")
    if extension and subtype and (extension == STEM_MP4 or not supports(f".{extension}", subtype)):
        samples = "floating-point" if subtype == "FLOAT" else f"{subtype[-2:]}-bit"
        raise InputError(f"{extension.upper()} has no {samples} samples: choose --wav, or leave the option out")


def _stems(options: SeparationOptions, model: _Model) -> tuple[str, ...]:
    """The stems to write."""
    if options.two_stems:
        return with_complement(options.two_stems, model.stems)
    if options.stem:
        return with_complement(options.stem, model.stems)[:1]
    return model.estimated


def output_paths(
    song: SongFile, options: SeparationOptions, template: FilenameTemplate, stems: tuple[str, ...]
) -> dict[str, Path]:
    """Stem → file, in the song's own format where it can be written as asked, else WAV; with ``figure`` the PNG too."""
    own, subtype = song.path.suffix.lower(), options.encoding.subtype
    keep = own in audio.FORMATS and (subtype is None or supports(own, subtype))
    extension = options.extension or (own if keep else ".wav").lstrip(".")
    folder, track = _place(song, options)
    if extension == STEM_MP4:
        paths = {ALL_STEMS: folder / f"{track}.{STEM_MP4}"}
    else:
        paths = {stem: template.path(folder, track, stem, extension) for stem in stems}
    if options.remux:
        film = remux.film_extension(song.path)
        paths |= {f"{stem}{FILM}": template.path(folder, track, stem, film) for stem in stems}
    if options.figure:
        paths[SPECTROGRAMS] = template.path(folder, track, SPECTROGRAMS, "png")
    return paths


def _place(song: SongFile, options: SeparationOptions) -> tuple[Path, str]:
    """The folder for a song's stems, and the track name in it, which names an excerpt."""
    track = song.track + options.excerpt.name
    if FOLDER not in str(options.out):
        return options.out, track
    folder = Path(str(options.out).replace(FOLDER, str(song.path.parent)))
    return folder, Path(track).name if song.path.parent != song.folder else track


def _load(options: SeparationOptions, reporter: Reporter) -> Separator:
    separator = twinsep.load(
        choose_checkpoint(options.checkpoint, reporter),
        options.framework,
        device=choose_device(options.framework, options.device, reporter.message),
        chunking=options.chunking,
        augmented=options.augmented,
    )
    if options.figure and set(separator.stems).isdisjoint(("instrumental", "vocals")):
        raise InputError(f"--figure draws vocals and instrumental: this model has {', '.join(separator.stems)}")
    return separator


def _read_config(options: SeparationOptions) -> Config:
    return read_config(choose_checkpoint(options.checkpoint))


def choose_checkpoint(path: Path | None, reporter: Reporter | None = None) -> Path | str:
    """``path``, or the base run's checkpoint, which ``reporter`` is told.

    A path that is the name of a preset whose weights come with its package is returned as that name. Raises
    :class:`InputError` if there is no checkpoint.
    """
    if path is not None:
        config = PRESETS.get(str(path))
        return path if config is None or path.exists() or config.model.network != "package" else str(path)
    for folder in (Path(), Path(__file__).parents[2]):
        base = folder / BASE_CHECKPOINT
        if base.exists():
            if reporter:
                reporter.message(f"using {base}, the base run: a small model trained for minutes on generated songs")
            return base
    raise InputError(f"no --checkpoint given and no {BASE_CHECKPOINT} here: train it with `dvc repro base`")
