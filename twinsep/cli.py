"""The command ``twinsep``: one thin function per command. The logic is in the modules they call."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from enum import StrEnum
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from twinsep.config import PRESETS, ClipMode, Config, Executor, ExportFormat, Framework, Precision, SampleFormat
from twinsep.errors import INTERRUPTED, InputError, Interrupted, TwinsepError, guarded
from twinsep.separation.overlap_add import Chunking

if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = StrEnum("PresetName", {name: name for name in PRESETS})


def _path(text: str | Path) -> Path:
    """A path from the command line; an empty one would silently mean the current folder."""
    if text == "":
        # Not an InputError: that is a ValueError, which Typer would catch.
        raise TwinsepError("a path is empty, perhaps because a shell variable is unset: name a file or a folder")
    return Path(text)


def _default_framework() -> Framework:
    """PyTorch, or JAX where it alone is installed."""
    return "jax" if find_spec("torch") is None and find_spec("jax") is not None else "torch"


EXAMPLES = """Examples: `twinsep separate song.mp3` writes separated/song/instrumental.mp3;
`twinsep separate album -r --two-stems vocals --flac` writes vocals and instrumental of every song in a folder as FLAC;
`twinsep separate album -r -o "{folder}" --filename "{track} ({stem}).{ext}"` writes stems beside their songs;
`twinsep separate song.wav --start 60 --length 30` tries half a minute first;
`twinsep separate song.wav --overlap 0.5 --shifts 2 --tta` takes twelve times as long, for slightly better stems."""


class Commands(TyperGroup):
    """Ends an interrupted command with a sentence; Typer would end it with a bare status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command of ``ctx``."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted; nothing half-written is left") from error


app = typer.Typer(
    cls=Commands,
    help="Remove the vocals from music with a band-split Mamba U-Net; train and evaluate it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

FRAMEWORK = _default_framework()
FrameworkOption = Annotated[Framework, typer.Option(help="Framework that computes.")]
Device = Annotated[str, typer.Option(help="auto (the best that works here), cpu, cuda, cuda:1, mps …")]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", "-n", help="Weights, or a system such as htdemucs; by default the released weights."),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file (JSON or YAML).")]
Preset = Annotated[PresetName | None, typer.Option(help="Named configuration.")]
System = Annotated[
    PresetName | None, typer.Option("--preset", help="A system with weights of its own, such as htdemucs.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override, such as --set model.mixer.kind=transformer; may be repeated."),
]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of songs: MUSDB18-HQ layout or paired folders.")]
Overlap = Annotated[
    float | None, typer.Option(help="Fraction of a chunk that it shares with the next one; a quarter by default.")
]
Segment = Annotated[float | None, typer.Option(help="Length of a chunk in seconds; the training segment by default.")]


@app.callback(invoke_without_command=True)
def main_options(
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Remove the vocals from music with a band-split Mamba U-Net; train and evaluate it."""
    if show_version:
        print(f"twinsep {version('twinsep')}")
        raise typer.Exit


@app.command(epilog=EXAMPLES)
def separate(
    songs: Annotated[
        list[Path],
        typer.Argument(
            parser=_path,
            metavar="SONGS...",
            help="Songs, or folders of them: wav, flac, mp3, m4a, ogg, opus, the sound of mp4 and mkv …",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", parser=_path, metavar="FOLDER", help="Folder for the stems; {folder} is that of the song."
        ),
    ] = Path("separated"),
    filename: Annotated[
        str,
        typer.Option(help="Path of a stem in that folder, from {track}, {stem} and {ext}."),
    ] = "{track}/{stem}.{ext}",
    checkpoint: Checkpoint = None,
    system: System = None,
    two_stems: Annotated[
        str | None, typer.Option(metavar="STEM", help="Write STEM and the rest; vocals: vocals and instrumental.")
    ] = None,
    stem: Annotated[str | None, typer.Option(metavar="STEM", help="Write only STEM.")] = None,
    wav: Annotated[bool, typer.Option("--wav", help="Write WAV. By default: the song's own format, or WAV.")] = False,
    flac: Annotated[bool, typer.Option("--flac", help="Write FLAC.")] = False,
    mp3: Annotated[bool, typer.Option("--mp3", help="Write MP3.")] = False,
    m4a: Annotated[bool, typer.Option("--m4a", help="Write M4A (AAC).")] = False,
    stem_mp4: Annotated[
        bool, typer.Option("--stem-mp4", help="Write one file of Stems, <track>.stem.mp4: the song and each stem.")
    ] = False,
    remux: Annotated[
        bool, typer.Option("--remux", help="Write the film of the song too, with each stem as its sound.")
    ] = False,
    mp3_bitrate: Annotated[
        int, typer.Option(help="MP3 bit rate in kbit/s, 64 to 320; at most 160 below 32 kHz.")
    ] = 320,
    int16: Annotated[bool, typer.Option("--int16", help="16-bit samples in WAV and FLAC.")] = False,
    int24: Annotated[
        bool, typer.Option("--int24", help="24-bit samples (default, unless the input is floating-point WAV).")
    ] = False,
    float32: Annotated[bool, typer.Option("--float32", help="Floating-point samples in WAV.")] = False,
    clip_mode: Annotated[
        ClipMode,
        typer.Option(help="Samples beyond full scale: clamp them, rescale all stems alike, or none: refuse the song."),
    ] = "clamp",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Pass over songs whose stems exist, without decoding them.")
    ] = False,
    start: Annotated[float, typer.Option(metavar="SECONDS", help="Separate the song from here on.")] = 0.0,
    length: Annotated[float | None, typer.Option(metavar="SECONDS", help="Separate no more than this.")] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Search folders in folders too, except linked ones.")
    ] = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="Separate more than two channels in pairs.")] = False,
    figure: Annotated[bool, typer.Option("--figure", help="Draw spectrograms of song, stems and mask.")] = False,
    overlap: Overlap = None,
    segment: Segment = None,
    shifts: Annotated[
        int, typer.Option(help="Average over this many shifted grids of chunks: slower, better.")
    ] = Chunking.shifts,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over swapped channels and inverted polarity: four times slower.")
    ] = False,
    batch: Annotated[int, typer.Option(help="Chunks in a batch; halved when memory runs out.")] = Chunking.batch,
    framework: FrameworkOption = FRAMEWORK,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU cores to use; all by default.")] = None,
    executor: Annotated[
        Executor, typer.Option(help="local: one song after the other; ray: side by side on a Ray cluster.")
    ] = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Report progress as lines of JSON.")] = False,
) -> None:
    """Remove the vocals from songs: stems of the same length, rate and channels that add up to the song."""
    from twinsep.separation.batch import SeparationOptions, separate_files
    from twinsep.separation.file import Encoding, Excerpt
    from twinsep.utils import backend

    subtype = _choose_one({"PCM_16": int16, "PCM_24": int24, "FLOAT": float32}, "--int16, --int24 and --float32")
    formats = {"wav": wav, "flac": flac, "mp3": mp3, "m4a": m4a, "stem.mp4": stem_mp4}
    extension = _choose_one(formats, "--wav, --flac, --mp3, --m4a and --stem-mp4")
    if threads is not None:
        backend.use_threads(threads)
    options = SeparationOptions(
        out=out,
        filename=filename,
        checkpoint=_choose_weights(checkpoint, system),
        two_stems=two_stems,
        stem=stem,
        extension=extension,
        encoding=Encoding(subtype, mp3_bitrate, clip_mode),
        chunking=Chunking(segment, overlap, shifts, batch),
        augmented=tta,
        overwrite=overwrite,
        recursive=recursive,
        pairs=pairs,
        figure=figure,
        framework=framework,
        device=device,
        as_json=as_json,
        skip_existing=skip_existing,
        excerpt=Excerpt(start, length),
        remux=remux,
        executor=executor,
    )
    separate_files(songs, options)


@app.command()
def listen(
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", "-n", help="Weights of a causal network, such as of the preset tiny-causal.")
    ],
    stem: Annotated[str, typer.Option(metavar="STEM", help="The stem to hear.")] = "instrumental",
    raw: Annotated[
        SampleFormat | None, typer.Option(help="Raw samples of this format at the model's rate; WAV by default.")
    ] = None,
    channels: Annotated[int, typer.Option(help="Channels of raw samples, 1 or 2.")] = 2,
    live: Annotated[bool, typer.Option("--live", help="From and to sound devices, until Ctrl-C.")] = False,
    source: Annotated[str | None, typer.Option("--input", help="Sound device to listen to, by name or number.")] = None,
    sink: Annotated[str | None, typer.Option("--output", help="Sound device to play on.")] = None,
    framework: FrameworkOption = FRAMEWORK,
    device: Device = "cpu",
) -> None:
    """Separate a live signal: from the standard input to the standard output, or from and to sound devices."""
    from twinsep.separation.listen import ListenOptions
    from twinsep.separation.listen import listen as start

    device = _choose_device(framework, device)
    start(ListenOptions(checkpoint, stem, raw, channels, live, source, sink, framework, device))


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print versions, devices, kernels, presets and checkpoints."""
    from twinsep.info import print_info

    print_info(as_json)


@app.command()
def demo(
    checkpoint: Checkpoint = None,
    system: System = None,
    framework: FrameworkOption = FRAMEWORK,
    device: Device = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 admits other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 7860,
    limit: Annotated[int, typer.Option(help="Largest upload in megabytes.")] = 200,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
) -> None:
    """Open a page on this machine: drop a song, hear and see its stems, download them."""
    from twinsep.demo.app import serve

    serve(
        checkpoint=_choose_weights(checkpoint, system),
        framework=framework,
        device=device,
        host=host,
        port=port,
        limit_mb=limit,
        open_browser=browser,
    )


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    config: ConfigFile = None,
    preset: Preset = None,
    record: Annotated[Path | None, typer.Option("--from", help="run.json of a run to repeat.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Start from these weights: a checkpoint (also its configuration, if none is chosen), or a file of "
            "another trainer with the same model.",
        ),
    ] = None,
    settings: Settings = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Type of the matrix products; the configuration's by default.")
    ] = None,
    data: Data = None,
    exclude: Annotated[
        Path | None, typer.Option("--exclude", help="List of songs to leave out, as check-data writes it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished or different run.")] = False,
    framework: Annotated[
        Framework | None, typer.Option(help="Framework that computes; PyTorch by default where it is installed.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, cuda:1, mps …")] = None,
    devices: Annotated[
        int, typer.Option(min=1, metavar="N", help="Devices of this machine that share every batch, in JAX.")
    ] = 1,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Use algorithms that repeat to the bit on an accelerator too.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard event files too.")] = False,
    profile: Annotated[
        int | None, typer.Option(metavar="N", help="Trace N steps, print the most expensive operations, and stop.")
    ] = None,
) -> None:
    """Train a model; an unfinished run of the same configuration continues where it stopped."""
    repeated = _read_record(record) if record else {}
    recorded = {"framework": repeated.get("framework"), **repeated.get("options", {})}
    choices = "--config FILE, --preset NAME and, to repeat a run, --from run.json"
    configuration = repeated.get("configuration")
    if init is not None and config is None and preset is None and configuration is None:
        from twinsep import checkpoints

        configuration = checkpoints.read(init, prefixes=()).config.to_dict()
    chosen = _choose_config(config, preset, settings, data, configuration, choices)
    if init is None and "init" in repeated:
        init = Path(repeated["init"]["file"])
    if precision is not None:
        chosen = chosen.override({"training": {"precision": precision}})
    if exclude is not None:
        from twinsep.data.checks import read_song_list

        chosen = chosen.override({"data": {"exclude": read_song_list(exclude)}})
    framework = framework or recorded.get("framework") or FRAMEWORK
    device = device or recorded.get("device") or "auto"
    if profile is not None:
        from twinsep.training import profiler

        profiler.profile_steps(chosen, out, framework=framework, device=device, steps=profile)
        return
    from twinsep.training import loop

    deterministic = deterministic or recorded.get("deterministic", False)
    options = loop.RunOptions(framework, device, devices, overwrite, deterministic, tensorboard=tensorboard, init=init)
    loop.train(chosen, out, options)


@app.command("check-data")
def check_data(
    root: Annotated[Path, typer.Argument(help="Folder of songs: MUSDB18-HQ layout or paired folders.")],
    names: Annotated[Path | None, typer.Option("--list", help="File for the names of unusable songs.")] = None,
    config: ConfigFile = None,
    preset: Preset = None,
    settings: Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing list.")] = False,
) -> None:
    """Find faults in the songs of a data set; exit status 1 if some are unusable. The preset is tiny by default."""
    chosen = _choose_config(config, preset or (None if config else "tiny"), settings, None)
    from twinsep.data import checks

    rate, seconds = chosen.model.sample_rate, chosen.training.segment_seconds
    if not checks.check_dataset(root, sample_rate=rate, segment_seconds=seconds, out=names, overwrite=overwrite):
        raise typer.Exit(1)


@app.command()
def evaluate(
    system: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, or one of mixture, band_gain, level_regression, weighted_regression, ideal_mask."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for metrics.json and summary.json.")],
    split: Annotated[
        list[str] | None,
        typer.Option(help="train, valid, test or real; may be repeated. By default test, and real if there is any."),
    ] = None,
    museval: Annotated[bool, typer.Option("--museval", help="Also museval's SDR, SIR, SAR and ISR (slow).")] = False,
    config: ConfigFile = None,
    preset: Preset = None,
    data: Data = None,
    overlap: Overlap = None,
    segment: Segment = None,
    framework: FrameworkOption = FRAMEWORK,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing scores.")] = False,
) -> None:
    """Score a checkpoint or a baseline on whole songs. A checkpoint contains its own configuration."""
    from twinsep.evaluation.evaluate import evaluate_baseline, evaluate_checkpoint
    from twinsep.evaluation.systems import BASELINES

    if system in BASELINES:
        chosen = _choose_config(config, preset, None, data)
        evaluate_baseline(system, chosen, out=out, splits=split, museval=museval, overwrite=overwrite)
        return
    if config or preset:
        raise InputError(
            f"{system} contains its own configuration: --config and --preset are for {', '.join(BASELINES)}"
        )
    evaluate_checkpoint(
        system,
        out=out,
        root=data,
        splits=split,
        museval=museval,
        chunking=Chunking(segment, overlap),
        framework=framework,
        device=_choose_device(framework, device),
        overwrite=overwrite,
    )


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint of the public model (.pt), its config.json beside it.")],
    out: Annotated[Path, typer.Argument(help="The same weights for twinsep (.safetensors).")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Convert a checkpoint of the public reference code into one that either framework loads."""
    from twinsep.checkpoints import reference

    reference.convert(source, out, overwrite=overwrite)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Trained weights.")],
    to: Annotated[ExportFormat, typer.Option("--to", help="Format: onnx, stablehlo (JAX) or torch (torch.export).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the programs.")],
    frames: Annotated[
        int | None,
        typer.Option(help="STFT frames of a spectrum. Default: any number in ONNX, else those of a training example."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Write a network, without its STFT, as programs for others; of a causal one also the step of a stream."""
    from twinsep.checkpoints.export import export as write

    write(checkpoint, to, out, frames=frames, overwrite=overwrite)


@app.command()
def bench(
    benchmarks: Annotated[
        list[str] | None,
        typer.Argument(
            help="scan, block, step, separate, growth, memory, length, feeding, processes, stream, export or gpu; "
            "all except gpu by default."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for <benchmark>.json.")] = Path("results/bench"),
    config: ConfigFile = None,
    preset: Preset = None,
    settings: Settings = None,
    warmups: Annotated[int, typer.Option(help="Uncounted calls after the first.")] = 2,
    repetitions: Annotated[int, typer.Option(help="Counted calls.")] = 15,
) -> None:
    """Time PyTorch, JAX and other systems in turns on the CPU, and measure memory; tiny and small by default."""
    from twinsep.benchmarks.records import BenchmarkOptions
    from twinsep.benchmarks.suite import run_benchmarks

    names = [preset] if preset or config else ["tiny", "small"]
    chosen = {name or str(config): _choose_config(config, name, settings, None) for name in names}
    run_benchmarks(benchmarks or [], BenchmarkOptions(chosen, warmups, repetitions), out)


def _choose_device(framework: str, name: str) -> str:
    """The device ``name``, or the one that "auto" stands for, named on the standard error."""
    from twinsep.utils import backend

    return backend.choose_device(framework, name, lambda sentence: print(sentence, file=sys.stderr))


def _choose_weights(checkpoint: Path | None, system: str | None) -> Path | None:
    """The weights of --checkpoint, or the system of --preset, which has weights of its own."""
    if checkpoint is not None and system is not None:
        raise InputError("--checkpoint and --preset exclude each other: choose one")
    return Path(system) if system is not None else checkpoint


def _choose_one(chosen: dict[str, bool], options: str) -> str | None:
    """The chosen name, or None; raises :class:`InputError` for more than one."""
    names = [name for name, given in chosen.items() if given]
    if len(names) > 1:
        raise InputError(f"{options} exclude each other: choose one")
    return names[0] if names else None


def _choose_config(
    file: Path | None,
    preset: str | None,
    settings: list[str] | None,
    data: Path | None,
    repeated: dict[str, Any] | None = None,
    choices: str = "--config FILE or --preset NAME",
) -> Config:
    """The configuration of a file, a preset or a recorded run, with the overrides of the options.

    ``choices`` names the options of the command that choose it.
    """
    from twinsep import config

    if (file is not None) + (preset is not None) + (repeated is not None) != 1:
        raise InputError(f"choose one of {choices}")
    if preset is not None:
        chosen = config.preset(str(preset))
    else:
        chosen = config.from_dict(_read_mapping(file) if repeated is None else repeated)
    for setting in settings or []:
        chosen = chosen.override(_parse_setting(setting))
    return chosen if data is None else chosen.override({"data": {"root": str(data)}})


def _read_record(file: Path) -> dict[str, Any]:
    """The ``run.json`` of a run: its configuration, framework, device and options."""
    values = _read_mapping(file)
    if not isinstance(values.get("configuration"), dict):
        raise InputError(f"{file}: holds no configuration: name the run.json that `twinsep train` wrote")
    return values


def _read_mapping(file: Path | None) -> dict[str, Any]:
    import yaml

    assert file is not None
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}): name a configuration file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: neither JSON nor YAML: name a configuration file") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: not a configuration, which is a mapping of sections (model, training …)")
    return values


def _parse_setting(setting: str) -> dict[str, Any]:
    """``a.b=c`` as {a: {b: c}}, with c read as YAML."""
    import yaml

    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise InputError(f"--set {setting}: write it as key=value, such as model.mixer.kind=transformer")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {setting}: the value is not YAML") from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _run() -> None:
    """Run the command of ``sys.argv``; a usage error becomes a sentence."""
    try:
        status = app(standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message().replace("Value error, ", "").rstrip(".")
        if not message:  # help was printed in place of a command
            sys.exit(error.exit_code)
        raise TwinsepError(f"{message}: see --help") from error
    sys.exit(status or 0)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stand-in for the stream
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        guarded(_run)
    except SystemExit as end:
        # XLA crashes when the process ends during a compilation, and a second Ctrl-C would print a traceback.
        if end.code == INTERRUPTED and "jax" in sys.modules and not multiprocessing.active_children():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
