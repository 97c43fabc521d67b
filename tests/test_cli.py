"""The command line: good input works, bad input ends in one sentence and leaves no file."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

from torch_impl.train import Trainer
from twinsep import audio, checkpoints, cli
from twinsep.checkpoints import Checkpoint


@pytest.fixture
def weights(micro, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "micro.safetensors"
    checkpoints.write(path, Checkpoint(micro, Trainer(micro).state()))
    return path


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """call(*arguments): run ``twinsep`` in an empty folder; returns (exit status, standard error)."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["twinsep", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    return run


def tone(channels=2, samples=50_000):
    rng = np.random.default_rng(0)
    return (0.2 * rng.standard_normal((channels, samples))).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "channels", "rate"),
    [("a.wav", 2, 44_100), ("b.flac", 1, 44_100), ("c.mp3", 2, 48_000), ("d.wav", 1, 22_050), ("e.wav", 2, 96_000)],
)
def test_separate(call, weights, tmp_path, name, channels, rate):
    song = tmp_path / name
    audio.write(song, tone(channels), rate)
    status, _ = call("separate", song, "--checkpoint", weights, "--two-stems", "vocals", "--out", "out")
    assert status == 0
    folder = tmp_path / "work" / "out" / song.stem
    before = audio.info(song)
    stems = [audio.read(folder / f"{stem}{song.suffix}") for stem in ("instrumental", "vocals")]
    assert all(audio.info(folder / f"{stem}{song.suffix}") == before for stem in ("instrumental", "vocals"))
    total = stems[0][0] + stems[1][0]
    # exact up to the rounding of the files: 24 bits, or the loss of an MP3
    assert np.abs(total - audio.read(song)[0]).max() < (0.3 if name.endswith("mp3") else 3e-7)


def test_separate_in_another_format_and_only_once(call, weights, tmp_path):
    audio.write(tmp_path / "song.wav", tone(), 44_100)
    arguments = ("separate", tmp_path / "song.wav", "--checkpoint", weights, "--flac")
    assert call(*arguments)[0] == 0
    path = tmp_path / "work" / "separated" / "song" / "instrumental.flac"
    written = path.read_bytes()
    status, said = call(*arguments)
    assert status == 2
    assert "exists; pass --overwrite" in said
    assert path.read_bytes() == written
    assert call(*arguments, "--overwrite")[0] == 0


def bad_songs(folder):
    audio.write(folder / "good.wav", tone(), 44_100)
    whole = (folder / "good.wav").read_bytes()
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("no sound here")
    (folder / "cut.flac").write_bytes(b"fLaC" + bytes(20))
    (folder / "headless.mp3").write_bytes(bytes(3000))
    (folder / "zero.wav").write_bytes(whole[:40] + bytes(4))
    (folder / "folder.wav").mkdir()
    return ["missing.wav", "empty.wav", "text.wav", "cut.flac", "headless.mp3", "zero.wav", "folder.wav"]


def test_separate_refuses_bad_songs(call, weights, tmp_path):
    for name in bad_songs(tmp_path):
        status, said = call("separate", tmp_path / name, "--checkpoint", weights)
        assert status == 2, name
        assert name in said
        assert_one_sentence(said)
    assert list((tmp_path / "work").iterdir()) == []


def test_separate_refuses_a_song_of_nan(call, weights, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "nan.wav", np.full((5000, 2), np.nan), 44_100, subtype="FLOAT")
    status, said = call("separate", tmp_path / "nan.wav", "--checkpoint", weights)
    assert status == 2
    assert "nan.wav" in said
    assert_one_sentence(said)
    assert list((tmp_path / "work").iterdir()) == []


def test_separate_refuses_bad_options(call, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("twinsep.separation.batch.BASE_CHECKPOINT", tmp_path / "untrained.safetensors")
    monkeypatch.setattr("twinsep.checkpoints.released.PATH", tmp_path / "unreleased.safetensors")
    song = tmp_path / "song.wav"
    audio.write(song, tone(), 44_100)
    (tmp_path / "file").write_text("")
    for arguments, sentence in [
        ((song,), "train it with `dvc repro base`"),
        ((song, "--checkpoint", tmp_path / "none.safetensors"), "does not exist"),
        ((song, "--checkpoint", song), "not a whole safetensors file"),
        ((song, "--checkpoint", weights, "--out", tmp_path / "file"), "is a file where a folder is needed"),
        (
            (song, "--checkpoint", weights, "--flac", "--mp3"),
            "--wav, --flac, --mp3, --m4a and --stem-mp4 exclude each other",
        ),
        ((song, "--checkpoint", weights, "--mp3-bitrate", "400"), "MP3 has no bit rate of 400 kbit/s"),
        ((song, "--checkpoint", weights, "--clip-mode", "fold"), "'fold' is not one of"),
        ((song, "--checkpoint", weights, "--threads", "0"), "--threads 0 is not possible here"),
        ((song, "--checkpoint", weights, "--stem", "drums"), "no stem 'drums'"),
        ((song, "--checkpoint", weights, "--segment", "1e308"), "is out of range"),
        ((song, "--checkpoint", weights, "--device", "meta"), "device 'meta' cannot be used here"),
        (("", "--checkpoint", weights), "a path is empty"),
        ((song, "--checkpoint", weights, "--out", ""), "a path is empty"),
        ((song, "--checkpoint", weights, "--batch", "0"), "batch 0 is out of range"),
        ((song, "--checkpoint", weights, "--overlap", "1.5"), "overlap 1.5"),
        ((song, "--checkpoint", weights, "--segment", "0"), "a segment of 0 s is out of range"),
        ((song, "--checkpoint", weights, "--framework", "tensorflow"), "'tensorflow' is not one of"),
        ((song, "--checkpoint", weights, "--device", "abacus"), "device 'abacus' cannot be used here"),
    ]:
        status, said = call("separate", *arguments)
        assert status == 2
        assert sentence in said
        assert_one_sentence(said)
    assert list((tmp_path / "work").iterdir()) == []


def assert_one_sentence(said):
    lines = [line for line in said.strip().splitlines() if line.startswith("twinsep: ")]
    assert len(lines) == 1
    assert "Traceback" not in said


def test_train_and_evaluate(call, micro, songs, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(micro.to_dict()))
    status, said = call("train", "--config", tmp_path / "c.yaml", "--set", "training.steps=2", "--out", "run")
    assert status == 0, said
    status, said = call("evaluate", "run/best.safetensors", "--split", "test", "--out", "scores")
    assert status == 0, said
    assert (tmp_path / "work" / "scores" / "metrics.json").exists()
    floor = ("evaluate", "mixture", "--config", tmp_path / "c.yaml", "--data", songs, "--out", "floor", "--overwrite")
    assert call(*floor)[0] == 0
    assert scored(tmp_path / "work" / "floor") == {"test", "real"}
    without = tmp_path / "musdb"
    shutil.copytree(songs / "test", without / "test")
    assert call(*floor, "--data", without)[0] == 0
    assert scored(tmp_path / "work" / "floor") == {"test"}
    status, said = call(*floor, "--data", without, "--split", "real")
    assert status == 2
    assert "holds no real songs" in said
    assert_one_sentence(said)


def scored(folder):
    return {record["split"] for record in json.loads((folder / "metrics.json").read_text())}


def test_train_and_evaluate_refuse_bad_input(call, weights, songs, tmp_path):
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("run/best.safetensors", "scored/metrics.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    tiny = ("--preset", "tiny", "--data", songs)
    short = (*tiny, "--set", "training.segment_seconds=1")
    for arguments, sentence in [
        (("train", "--out", "run"), "choose one of --config FILE, --preset NAME and"),
        (("train", "--preset", "huge", "--out", "run"), "'huge' is not one of"),
        (("train", "--config", tmp_path / "none.yaml", "--out", "run"), "cannot be read"),
        (("train", "--config", tmp_path / "list.yaml", "--out", "run"), "not a configuration"),
        (("train", "--config", tmp_path / "broken.yaml", "--out", "run"), "neither JSON nor YAML"),
        (("train", *tiny, "--set", "model.hop", "--out", "run"), "write it as key=value"),
        (("train", *tiny, "--set", "model.hop=x", "--out", "run"), "model.hop"),
        (("train", "--preset", "tiny", "--data", tmp_path / "empty", "--out", "run"), "empty"),
        (("train", *tiny, "--out", tmp_path / "file"), "is a file"),
        (("train", *tiny, "--out", "run"), "segment_seconds is 3, but the longest training song, a, lasts 2 s"),
        (("train", *short, "--out", tmp_path / "file" / "run"), "Not a directory"),
        (("evaluate", weights, "--data", tmp_path / "nowhere", "--out", "o"), "nowhere"),
        (("evaluate", weights, "--preset", "tiny", "--out", "o"), "contains its own configuration"),
        (("evaluate", weights, "--split", "tset", "--out", "o"), "tset"),
        (("evaluate", "magic", "--out", "o"), "neither a checkpoint nor one of the presets"),
        (("evaluate", "band_gain", "--out", "o"), "choose one of --config FILE or --preset NAME"),
        (
            ("evaluate", "mixture", "--preset", "tiny", "--data", tmp_path / "file", "--out", "o"),
            "is a file, not a folder",
        ),
        (("evaluate", tmp_path / "run", "--out", "o"), "run/best.safetensors"),
        (("evaluate", weights, "--out", tmp_path / "scored"), "scored holds scores"),
        (("evaluate", "mixture", *tiny, "--out", tmp_path / "scored"), "scored holds scores"),
        (("evaluate", weights, "--out", tmp_path / "file", "--split", "test"), "is a file"),
    ]:
        status, said = call(*arguments)
        assert status == 2, (arguments, said)
        assert sentence in said
        assert_one_sentence(said)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_full_disk_ends_in_one_sentence(weights, tmp_path):
    """The command runs in a process whose files cannot exceed 100 kB."""
    audio.write(tmp_path / "song.wav", tone(samples=200_000), 44_100)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import numba;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from twinsep.cli import main; main()"
    )
    arguments = ["separate", tmp_path / "song.wav", "--checkpoint", weights, "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "twinsep: cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_help_imports_no_framework():
    code = (
        "import sys; sys.argv = ['twinsep', '--help']\n"
        "from twinsep.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "loaded = {'torch', 'jax', 'flax', 'grain', 'numba', 'museval', 'dvclive'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in ("separate", "train", "evaluate"))


@pytest.mark.parametrize(
    ("installed", "framework"), [({"torch", "jax"}, "torch"), ({"torch"}, "torch"), ({"jax"}, "jax"), (set(), "torch")]
)
def test_jax_computes_by_default_only_where_it_alone_is_installed(installed, framework, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: object() if name in installed else None)
    assert cli._default_framework() == framework


def test_no_module_of_twinsep_imports_a_framework():
    code = (
        "import importlib, pkgutil, sys, twinsep\n"
        "for module in pkgutil.walk_packages(twinsep.__path__, 'twinsep.'):\n"
        "    importlib.import_module(module.name)\n"
        "loaded = {'torch', 'jax', 'flax'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_separate_needs_no_package_of_training_or_figures_and_no_posix_module(weights, tmp_path):
    """Grain has no wheels for some machines, and the module ``resource`` exists only on POSIX systems."""
    code = """if True:
        import sys

        class Missing:
            def find_spec(self, name, *_):
                if name in "resource grain absl jax flax optax dvclive pandas matplotlib museval gradio scipy".split():
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Missing())
        from twinsep.cli import main
        main()
    """
    audio.write(tmp_path / "song.wav", tone(samples=20_000), 44_100)
    arguments = ["separate", tmp_path / "song.wav", "-n", weights, "-o", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "song" / "instrumental.wav").exists()


def test_training_without_grain_ends_in_one_sentence(call, monkeypatch, songs, tmp_path):
    monkeypatch.setitem(sys.modules, "grain", None)
    status, said = call(
        "train", "--preset", "tiny", "--data", songs, "--out", tmp_path / "run", "--set", "training.segment_seconds=0.5"
    )
    assert status == 2
    assert said.splitlines()[-1].startswith("twinsep: training needs the package grain, which cannot be imported here")
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
