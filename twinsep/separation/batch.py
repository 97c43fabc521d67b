"""Many songs: files and folders in, stems out, each stem written whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import twinsep
from twinsep import audio
from twinsep.audio import spectrogram
from twinsep.audio.reading import MAX_CHANNELS
from twinsep.audio.writing import supports
from twinsep.errors import InputError, Interrupted, TwinsepError
from twinsep.separation.file import Encoding, separate_file
from twinsep.separation.overlap_add import Chunking
from twinsep.separation.paths import SPECTROGRAMS, FilenameTemplate, SongFile, check_collisions, find_songs
from twinsep.separation.reporters import Reporter, open_reporter
from twinsep.separation.separator import Separator
from twinsep.utils.files import display_path

#: Checkpoint of ``separate`` without ``--checkpoint``: in the current folder, or in the checkout it runs from.
BASE_CHECKPOINT = Path("results/weights/torch-base/0.safetensors")


@dataclass(frozen=True)
class SeparationOptions:
    """The options of ``twinsep separate``, with their defaults."""

    #: Folder for the stems, and their place in it.
    out: Path = Path("separated")
    filename: str = FilenameTemplate.text
    #: Trained weights; the base run's if None.
    checkpoint: Path | None = None
    #: Write this stem and the rest of the song, or this stem alone; by default the stems that the model estimates.
    two_stems: str | None = None
    stem: str | None = None
    #: Format of the stems, without a dot; the song's own if None, or WAV where that cannot be written.
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
    device: str = "cpu"
    as_json: bool = False


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
    if options.figure:
        spectrogram.require_matplotlib()
    songs = find_songs(paths, options.out, recursive=options.recursive)
    with open_reporter(as_json=options.as_json) as reporter:
        separator = _load(options, reporter)
        stems = _stems(options, separator)
        outputs = {song: output_paths(song, options, template, stems) for song in songs}
        check_collisions({song.path: list(paths.values()) for song, paths in outputs.items()})
        _separate_all(outputs, options, separator, reporter)


def _separate_all(
    outputs: dict[SongFile, dict[str, Path]], options: SeparationOptions, separator: Separator, reporter: Reporter
) -> None:
    finished: list[SongFile] = []
    failed: dict[SongFile, TwinsepError] = {}
    for number, (song, paths) in enumerate(outputs.items(), 1):
        figure = paths.pop(SPECTROGRAMS, None)
        reading, separating = reporter.on_start(song.path, number, len(outputs))
        try:
            result = separate_file(
                song.path,
                paths,
                separator,
                options.encoding,
                overwrite=options.overwrite,
                figure=figure,
                max_channels=MAX_CHANNELS if options.pairs else 2,
                reading=reading,
                separating=separating,
            )
        except KeyboardInterrupt as error:
            done = f"{len(finished)} of {len(outputs)} songs are finished"
            names = f" ({_list_names(finished)})" if finished else ""
            reporter.on_interrupted(len(finished), len(outputs))
            raise Interrupted(f"interrupted: {done}{names}; no half-written stem is left") from error
        except TwinsepError as error:
            failed[song] = error
            reporter.on_failed(song.path, str(error))
        else:
            finished.append(song)
            reporter.on_written(song.path, result)
    reporter.on_end(len(finished), len(outputs))
    if failed and len(outputs) == 1:
        raise next(iter(failed.values()))
    if failed:
        raise InputError(f"{len(failed)} of {len(outputs)} songs failed, see above: {_list_names([*failed])}")


def _list_names(songs: list[SongFile]) -> str:
    return ", ".join(display_path(song.path.name) for song in songs[:5]) + (" …" if len(songs) > 5 else "")


def _check_format(options: SeparationOptions) -> None:
    """Raise :class:`InputError` if the chosen format cannot hold the chosen samples."""
    extension, subtype = options.extension, options.encoding.subtype
    if extension and subtype and not supports(f".{extension}", subtype):
        samples = "floating-point" if subtype == "FLOAT" else f"{subtype[-2:]}-bit"
        raise InputError(f"{extension.upper()} has no {samples} samples: choose --wav, or leave the option out")


def _stems(options: SeparationOptions, separator: Separator) -> tuple[str, ...]:
    """The stems to write."""
    if options.two_stems:
        return separator.names(options.two_stems)
    if options.stem:
        return separator.names(options.stem)[:1]
    return separator.config.model.stems


def output_paths(
    song: SongFile, options: SeparationOptions, template: FilenameTemplate, stems: tuple[str, ...]
) -> dict[str, Path]:
    """Stem → file, in the song's own format where it can be written as asked, else WAV; with ``figure`` the PNG too."""
    own, subtype = song.path.suffix.lower(), options.encoding.subtype
    keep = own in audio.FORMATS and (subtype is None or supports(own, subtype))
    extension = options.extension or (own if keep else ".wav").lstrip(".")
    paths = {stem: template.path(options.out, song.track, stem, extension) for stem in stems}
    if options.figure:
        paths[SPECTROGRAMS] = template.path(options.out, song.track, SPECTROGRAMS, "png")
    return paths


def _load(options: SeparationOptions, reporter: Reporter) -> Separator:
    separator = twinsep.load(
        choose_checkpoint(options.checkpoint, reporter),
        options.framework,
        device=options.device,
        chunking=options.chunking,
        augmented=options.augmented,
    )
    if options.figure and set(separator.stems).isdisjoint(("instrumental", "vocals")):
        raise InputError(f"--figure draws vocals and instrumental: this model has {', '.join(separator.stems)}")
    return separator


def choose_checkpoint(path: Path | None, reporter: Reporter) -> Path:
    """``path``, or the base run's checkpoint, with a message; raises :class:`InputError` if neither exists."""
    if path is not None:
        return path
    for folder in (Path(), Path(__file__).parents[2]):
        base = folder / BASE_CHECKPOINT
        if base.exists():
            reporter.message(f"using {base}, the base run: a small model trained for minutes on generated songs")
            return base
    raise InputError(f"no --checkpoint given and no {BASE_CHECKPOINT} here: train it with `dvc repro base`")
