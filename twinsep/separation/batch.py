"""What ``twinsep separate`` does: songs in, stems out, each written whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import twinsep
from twinsep import audio
from twinsep.audio import spectrogram
from twinsep.audio.reading import MOST_CHANNELS
from twinsep.audio.writing import supports
from twinsep.errors import InputError, Interrupted, TwinsepError
from twinsep.separation import reporters
from twinsep.separation.file import Encoding, separate_file
from twinsep.separation.paths import SPECTROGRAMS, FilenameTemplate, SongFile, check_collisions, find_songs
from twinsep.separation.separator import Separator
from twinsep.utils.files import display_path

#: What ``separate`` uses without ``--checkpoint``, in the folder it is called in or in the checkout it runs from.
BASE_CHECKPOINT = Path("results/runs/torch-base-0/best.safetensors")


@dataclass(frozen=True)
class SeparationOptions:
    """How songs are separated; the defaults are those of the command line.

    Stems: all of the model's, but of a model of one stem that one alone; ``two_stems`` takes one and what it leaves,
    ``stem`` one by itself. ``extension`` without a dot, by default each song's own where it can be written, else WAV.
    ``segment`` in seconds, by default the training segment. ``pairs`` separates more than two channels two by two.
    """

    out: Path = Path("separated")
    filename: str = FilenameTemplate.text
    checkpoint: Path | None = None
    two_stems: str | None = None
    stem: str | None = None
    extension: str | None = None
    encoding: Encoding = field(default_factory=Encoding)
    overwrite: bool = False
    recursive: bool = False
    pairs: bool = False
    figure: bool = False
    segment: float | None = None
    overlap: float = 0.25
    shifts: int = 1
    batch: int = 1
    augmented: bool = False
    framework: str = "torch"
    device: str = "cpu"
    as_json: bool = False


def separate_files(given: list[Path], options: SeparationOptions) -> None:
    """Separate these files and the songs in these folders.

    A song that cannot be separated is told of and the others go on. Raises :class:`InputError` for options that cannot
    be met, before any work; for a single song its own; after several a sentence of how many failed. Ctrl-C raises
    :class:`Interrupted`, which says what is finished.
    """
    template = FilenameTemplate(options.filename)
    _check_format(options)
    if options.two_stems and options.stem:
        raise InputError("--two-stems and --stem exclude each other; give one")
    if options.figure:
        spectrogram.require_matplotlib()
    songs = find_songs(given, options.out, recursive=options.recursive)
    with reporters.open_reporter(as_json=options.as_json) as reporter:
        separator = _load(options, reporter)
        stems = _stems(options, separator)
        plans = {song: output_paths(song, options, template, stems) for song in songs}
        check_collisions({song.path: list(paths.values()) for song, paths in plans.items()})
        _run(plans, options, separator, reporter)


def _run(
    plans: dict[SongFile, dict[str, Path]],
    options: SeparationOptions,
    separator: Separator,
    reporter: reporters.Reporter,
) -> None:
    finished: list[SongFile] = []
    failed: list[SongFile] = []
    for number, (song, paths) in enumerate(plans.items(), 1):
        figure = paths.pop(SPECTROGRAMS, None)
        reading, separating = reporter.on_start(song.path, number, len(plans))
        try:
            outcome = separate_file(
                song.path,
                paths,
                separator,
                options.encoding,
                overwrite=options.overwrite,
                figure=figure,
                most_channels=MOST_CHANNELS if options.pairs else 2,
                reading=reading,
                report=separating,
            )
        except KeyboardInterrupt as error:
            done = f"{len(finished)} of {len(plans)} songs are finished"
            names = f" ({_some(finished)})" if finished else ""
            reporter.on_interrupted(len(finished), len(plans))
            raise Interrupted(f"interrupted; {done}{names}; nothing half-written was left behind") from error
        except TwinsepError as error:
            failed.append(song)
            if len(plans) == 1 and not options.as_json:
                raise
            reporter.on_failed(song.path, str(error))
        else:
            finished.append(song)
            reporter.on_written(song.path, outcome)
    reporter.on_end(len(finished), len(plans))
    if failed:
        raise InputError(
            f"{len(failed)} of {len(plans)} songs could not be separated: {_some(failed)}; the reasons stand above"
        )


def _some(songs: list[SongFile]) -> str:
    return ", ".join(display_path(song.path.name) for song in songs[:5]) + (" …" if len(songs) > 5 else "")


def _check_format(options: SeparationOptions) -> None:
    """Raise :class:`InputError` for a format that has no samples of the kind that was asked for."""
    extension, subtype = options.extension, options.encoding.subtype
    if extension and subtype and not supports(f".{extension}", subtype):
        what = "floating point" if subtype == "FLOAT" else f"{subtype[-2:]} bits a sample"
        raise InputError(f"{extension.upper()} has no {what}; give --wav, or leave that out")


def _stems(options: SeparationOptions, separator: Separator) -> tuple[str, ...]:
    """Which stems are written."""
    if options.two_stems:
        return separator.names(options.two_stems)
    if options.stem:
        return separator.names(options.stem)[:1]
    return separator.config.model.stems


def output_paths(
    song: SongFile, options: SeparationOptions, template: FilenameTemplate, stems: tuple[str, ...]
) -> dict[str, Path]:
    """Where a song's stems go, in its own format where that can be written as asked, else WAV; and its picture."""
    own, subtype = song.path.suffix.lower(), options.encoding.subtype
    kept = own in audio.FORMATS and (subtype is None or supports(own, subtype))
    extension = options.extension or (own if kept else ".wav").lstrip(".")
    paths = {stem: template.path(options.out, song.track, stem, extension) for stem in stems}
    if options.figure:
        paths[SPECTROGRAMS] = template.path(options.out, song.track, SPECTROGRAMS, "png")
    return paths


def _load(options: SeparationOptions, reporter: reporters.Reporter) -> Separator:
    separator = twinsep.load(
        choose_checkpoint(options.checkpoint, reporter),
        options.framework,
        device=options.device,
        segment=options.segment,
        overlap=options.overlap,
        shifts=options.shifts,
        batch=options.batch,
        augmented=options.augmented,
    )
    if options.figure and set(separator.stems).isdisjoint(("instrumental", "vocals")):
        raise InputError(f"--figure draws vocals and instrumental, and this model gives {', '.join(separator.stems)}")
    return separator


def choose_checkpoint(given: Path | None, reporter: reporters.Reporter) -> Path:
    """The one given, or the base run's, which is named; raises :class:`InputError` where there is neither."""
    if given is not None:
        return given
    for folder in (Path(), Path(__file__).parent.parent):
        path = folder / BASE_CHECKPOINT
        if path.exists():
            reporter.message(f"using {path}, the base run: a small model trained for minutes on generated songs")
            return path
    raise InputError(f"no --checkpoint given and no {BASE_CHECKPOINT} here; `dvc repro base` trains it")
