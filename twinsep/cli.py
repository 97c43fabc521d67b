"""The command ``twinsep``: thin. What a command does is in the module of its name."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from twinsep.errors import INTERRUPTED, InputError, Interrupted, TwinsepError, guarded


def _path(text: str | Path) -> Path:
    """A path that was given, or a default; an empty one would mean the current folder."""
    if text == "":
        # No InputError, which is a ValueError: Typer would make a box of it.
        raise TwinsepError("an empty path was given, perhaps by a variable that is not set; name a file or a folder")
    return Path(text)


EXAMPLES = """Examples: `twinsep separate song.mp3` writes separated/song/instrumental.mp3;
`twinsep separate album -r --two-stems vocals --flac` does so for every song of a folder, vocals too, as FLAC;
`twinsep separate song.wav --filename "{track} ({stem}).{ext}" -o .` puts it beside the song;
`twinsep separate song.wav --overlap 0.5 --shifts 2 --tta` takes twelve times as long, for a little better sound."""


class Commands(TyperGroup):
    """Ends a command that a person interrupts in a sentence; Typer's own end would say a word."""

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted; nothing half-written was left behind") from error


app = typer.Typer(
    cls=Commands,
    help="Remove the vocals from music with a band-split Mamba U-Net; train and evaluate it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Framework = Annotated[str, typer.Option(help="torch or jax")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file (JSON or YAML).")]
Preset = Annotated[str | None, typer.Option(help="Named configuration: tiny, small, paper, reference ...")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override, as in --set model.mixer.kind=transformer; may be repeated."),
]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of songs: MUSDB18-HQ layout or paired folders.")]
Overlap = Annotated[float, typer.Option(help="Fraction of a chunk shared with the next one.")]
Segment = Annotated[float | None, typer.Option(help="Seconds of a chunk; the training segment by default.")]


@app.command(epilog=EXAMPLES)
def separate(
    songs: Annotated[
        list[Path],
        typer.Argument(
            parser=_path,
            metavar="SONGS...",
            help="Songs, or folders of them: wav, flac, mp3, m4a, ogg, opus, the sound of mp4 and mkv ...",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", parser=_path, metavar="FOLDER", help="Folder for the stems.")
    ] = Path("separated"),
    filename: Annotated[
        str,
        typer.Option(
            help="Where a stem goes in that folder, by {track}, {stem} and {ext}; the picture's stem is spectrograms."
        ),
    ] = "{track}/{stem}.{ext}",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            "-n",
            help="Trained weights (.safetensors, or a folder of save_pretrained); by default the base run's.",
        ),
    ] = None,
    two_stems: Annotated[
        str | None, typer.Option(metavar="STEM", help="Write STEM and the rest; vocals: vocals and instrumental.")
    ] = None,
    stem: Annotated[str | None, typer.Option(metavar="STEM", help="Write STEM alone.")] = None,
    wav: Annotated[bool, typer.Option("--wav", help="Write WAV. Without a format: the song's own, or WAV.")] = False,
    flac: Annotated[bool, typer.Option("--flac", help="Write FLAC.")] = False,
    mp3: Annotated[bool, typer.Option("--mp3", help="Write MP3.")] = False,
    mp3_bitrate: Annotated[int, typer.Option(help="Of an MP3, in kbit/s, 64 to 320; below 32 kHz 160 at most.")] = 320,
    int16: Annotated[bool, typer.Option("--int16", help="16 bits a sample in WAV and FLAC.")] = False,
    int24: Annotated[
        bool, typer.Option("--int24", help="24 bits: the default, but for a WAV in floating point.")
    ] = False,
    float32: Annotated[bool, typer.Option("--float32", help="Floating point, in WAV.")] = False,
    clip_mode: Annotated[
        str,
        typer.Option(help="Samples beyond full scale: clamp them, rescale all stems alike, or none: refuse."),
    ] = "clamp",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look into the folders of folders, but for linked ones.")
    ] = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="Separate more than two channels two by two.")] = False,
    figure: Annotated[bool, typer.Option("--figure", help="Draw spectrograms of song, stems and mask.")] = False,
    overlap: Overlap = 0.25,
    segment: Segment = None,
    shifts: Annotated[int, typer.Option(help="Average over so many shifted grids of chunks: slower, better.")] = 1,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over swapped channels and reversed polarity: four times slower.")
    ] = False,
    batch: Annotated[int, typer.Option(help="Chunks at once; halved where memory runs out.")] = 1,
    framework: Framework = "torch",
    device: Device = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU cores to use; all by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say what happens as lines of JSON.")] = False,
) -> None:
    """Take the vocals out of songs: same length, rate and channels, and stems that add up to the song."""
    from twinsep.separation import batch as command
    from twinsep.separation.file import Encoding
    from twinsep.utils import backend

    subtype = _one_of({"PCM_16": int16, "PCM_24": int24, "FLOAT": float32}, "--int16, --int24 and --float32")
    extension = _one_of({"wav": wav, "flac": flac, "mp3": mp3}, "--wav, --flac and --mp3")
    if threads is not None:
        backend.use_threads(threads)
    options = command.SeparationOptions(
        out=out,
        filename=filename,
        checkpoint=checkpoint,
        two_stems=two_stems,
        stem=stem,
        extension=extension,
        encoding=Encoding(subtype, mp3_bitrate, clip_mode),
        overwrite=overwrite,
        recursive=recursive,
        pairs=pairs,
        figure=figure,
        segment=segment,
        overlap=overlap,
        shifts=shifts,
        batch=batch,
        augmented=tta,
        framework=framework,
        device=device,
        as_json=as_json,
    )
    command.separate_files(songs, options)


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Print versions, devices, the kernels in use, presets and checkpoints."""
    from twinsep import info

    info.print_info(as_json)


@app.command()
def demo(
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-n", help="Trained weights; by default the base run's.")
    ] = None,
    framework: Framework = "torch",
    device: Device = "cpu",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 7860,
    limit: Annotated[int, typer.Option(help="Megabytes that an upload may have.")] = 200,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
) -> None:
    """Open a page on this machine: drop a song, hear and see its stems, download them."""
    from twinsep.demo import app as command

    command.serve(
        checkpoint=checkpoint,
        framework=framework,
        device=device,
        host=host,
        port=port,
        open_browser=browser,
        limit_mb=limit,
    )


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    config: ConfigFile = None,
    preset: Preset = None,
    record: Annotated[Path | None, typer.Option("--from", help="run.json of a run to repeat.")] = None,
    settings: Settings = None,
    data: Data = None,
    exclude: Annotated[
        Path | None, typer.Option("--exclude", help="List of songs to leave out, as check-data writes it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train anew over a finished or other run.")] = False,
    framework: Annotated[str | None, typer.Option(help="torch (by default) or jax.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu (by default), cuda, cuda:1, mps …")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="On an accelerator too, algorithms that repeat to the bit.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard's event files too.")] = False,
    profile: Annotated[
        int | None, typer.Option(metavar="N", help="Trace N steps, print what takes their time, and stop.")
    ] = None,
) -> None:
    """Train a model; an unfinished run of the same configuration goes on where it stopped."""
    repeated = _record(record) if record else {}
    options = {"framework": repeated.get("framework"), **repeated.get("options", {})}
    chosen = _configuration(config, preset, settings, data, repeated.get("configuration"))
    if exclude is not None:
        from twinsep.data.checks import read_song_list

        chosen = chosen.override({"data": {"exclude": read_song_list(exclude)}})
    framework, device = framework or options.get("framework") or "torch", device or options.get("device") or "cpu"
    if profile is not None:
        from twinsep.training import profiler

        profiler.profile_steps(chosen, out, framework=framework, device=device, steps=profile)
        return
    from twinsep.training import loop

    how = loop.RunOptions(
        framework, device, overwrite, deterministic or options.get("deterministic", False), tensorboard=tensorboard
    )
    loop.train(chosen, out, how)


@app.command("check-data")
def check_data(
    root: Annotated[Path, typer.Argument(help="Folder of songs: MUSDB18-HQ layout or paired folders.")],
    names: Annotated[Path | None, typer.Option("--list", help="File for the names of unusable songs.")] = None,
    config: ConfigFile = None,
    preset: Preset = None,
    settings: Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a list that exists.")] = False,
) -> None:
    """Find what is wrong with the songs of a set; status 1 where some are unusable. Preset tiny by default."""
    chosen = _configuration(config, preset or (None if config else "tiny"), settings, None)
    from twinsep.data import checks

    rate, seconds = chosen.model.sample_rate, chosen.training.segment_seconds
    if not checks.check_dataset(root, sample_rate=rate, segment_seconds=seconds, out=names, overwrite=overwrite):
        raise typer.Exit(1)


@app.command()
def evaluate(
    system: Annotated[str, typer.Argument(help="A checkpoint, or one of mixture, band_gain, ideal_mask.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for metrics.json and summary.json.")],
    split: Annotated[
        list[str] | None,
        typer.Option(help="train, valid, test or real; may be repeated. By default test, and real if any."),
    ] = None,
    museval: Annotated[bool, typer.Option("--museval", help="Also museval's SDR, SIR, SAR and ISR (slow).")] = False,
    config: ConfigFile = None,
    preset: Preset = None,
    data: Data = None,
    overlap: Overlap = 0.25,
    segment: Segment = None,
    framework: Framework = "torch",
    device: Device = "cpu",
) -> None:
    """Score a checkpoint or a baseline on whole songs. A checkpoint brings its configuration with it."""
    from twinsep.evaluation import evaluate
    from twinsep.evaluation.systems import BASELINES

    if system in BASELINES:
        chosen = _configuration(config, preset, None, data)
    elif config or preset:
        raise InputError(f"{system} brings its own configuration; --config and --preset are for {', '.join(BASELINES)}")
    else:
        chosen = None
    evaluate.evaluate(
        system,
        chosen,
        out=out,
        root=data,
        splits=split,
        museval=museval,
        overlap=overlap,
        segment=segment,
        framework=framework,
        device=device,
    )


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint of the reference code (.pt), its config.json beside it.")],
    out: Annotated[Path, typer.Argument(help="The same weights for twinsep (.safetensors).")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Turn a checkpoint of the public reference code into one that either framework here loads."""
    from twinsep.checkpoints import reference as command

    command.convert(source, out, overwrite=overwrite)


@app.command()
def bench(
    benchmarks: Annotated[
        list[str] | None,
        typer.Argument(help="scan, block, step, separate, growth, memory, length, feeding; or all."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for <benchmark>.json.")] = Path("results/bench"),
    config: ConfigFile = None,
    preset: Preset = None,
    settings: Settings = None,
    warmups: Annotated[int, typer.Option(help="Calls after the first that do not count.")] = 2,
    repetitions: Annotated[int, typer.Option(help="Calls that count.")] = 15,
) -> None:
    """Time PyTorch, JAX and other systems in turns on the CPU, and measure memory; tiny and small by default."""
    names = [preset] if preset or config else ["tiny", "small"]
    chosen = {name or str(config): _configuration(config, name, settings, None) for name in names}
    from twinsep.benchmarks import suite as command
    from twinsep.benchmarks.records import BenchmarkOptions

    command.run_benchmarks(benchmarks or [], BenchmarkOptions(chosen, warmups, repetitions), out)


def _one_of(chosen: dict[str, bool], options: str) -> str | None:
    """The name that is chosen; raises :class:`InputError` for more than one."""
    names = [name for name, given in chosen.items() if given]
    if len(names) > 1:
        raise InputError(f"{options} exclude each other; give one")
    return names[0] if names else None


def _configuration(
    file: Path | None,
    preset: str | None,
    settings: list[str] | None,
    data: Path | None,
    repeated: dict[str, Any] | None = None,
) -> Any:
    """The configuration that the options name, or a record holds, overridden as they say."""
    from twinsep import config

    if (file is not None) + (preset is not None) + (repeated is not None) != 1:
        raise InputError("give either --config FILE or --preset NAME, or, to train, --from run.json")
    if preset is not None:
        chosen = config.preset(preset)
    else:
        chosen = config.from_dict(_mapping(file) if repeated is None else repeated)
    for setting in settings or []:
        chosen = chosen.override(_nested(setting))
    return chosen if data is None else chosen.override({"data": {"root": str(data)}})


def _record(file: Path) -> dict[str, Any]:
    """What the ``run.json`` of a run holds, which names its configuration, framework, device and options."""
    values = _mapping(file)
    if not isinstance(values.get("configuration"), dict):
        raise InputError(f"{file}: holds no configuration; give the run.json that `twinsep train` wrote")
    return values


def _mapping(file: Path | None) -> dict[str, Any]:
    import yaml

    assert file is not None
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give a configuration file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: neither JSON nor YAML; give a configuration file") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: not a configuration, which is a mapping of sections (model, training …)")
    return values


def _nested(setting: str) -> dict[str, Any]:
    """``a.b=c`` as {a: {b: c}}, c read as YAML."""
    import yaml

    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise InputError(f"--set {setting}: write it as key=value, as in model.mixer.kind=transformer")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {setting}: the value is not YAML") from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def main() -> None:
    """The entry point of ``twinsep``."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # of what stands in for one
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        guarded(app)
    except SystemExit as end:
        # XLA, told to end in the middle of a compilation, crashes; and a second Ctrl-C would be a traceback.
        if end.code == INTERRUPTED and "jax" in sys.modules and not multiprocessing.active_children():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
