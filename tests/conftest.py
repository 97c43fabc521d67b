"""Shared fixtures, and the environment in which all tests run."""

import atexit
import contextlib
import gc
import os
import shutil
import signal
import tempfile
from importlib.metadata import version

# JAX's tests spend most of their time compiling. Without these emitters and most passes, XLA compiles in a third of the
# time, and the cache lets processes and tests share compiled programs; these are slower but compute the same. JAX reads
# the variables when it starts, also in processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # The vector width that twinsep sets: the first import decides, and all processes must compute the same.
    flags = "--xla_cpu_prefer_vector_width=512"
    if version("jax").startswith("0.10."):  # later ones do not know the flag, and stop at it
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="twinsep-xla-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Without a GPU Triton interprets its kernels. It reads the variable when PyTorch imports it.
if not os.path.exists("/dev/nvidiactl"):  # noqa: PTH110 - few imports here
    os.environ["TRITON_INTERPRET"] = "1"
# A shell that runs the tests in the background makes them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# One test process per core, hence one thread each; the tests about threads set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

from ablations.fault_injection import write_song
from twinsep.config import preset
from twinsep.errors import Interrupted

settings.register_profile("twinsep", deadline=None, derandomize=True)
settings.load_profile("twinsep")


def pytest_configure():
    """Collect garbage seldom: tracers make many small objects, and a collection visits all that torch and JAX keep."""
    gc.set_threshold(50_000, 20, 20)  # with Python's numbers (700, 10, 10) a twentieth of the tests' time


def pytest_collection_finish():
    """Leave out of later collections what the imports made."""
    gc.freeze()


def _numpy():
    import array_api_compat.numpy as xp

    return xp, lambda a: np.asarray(a)


def _torch():
    import array_api_compat.torch as xp
    import torch

    return xp, lambda a: torch.from_numpy(np.array(a))


def _jax():
    import jax.numpy as xp

    return xp, lambda a: xp.asarray(a)


@pytest.fixture(params=["numpy", "torch", "jax"])
def xp(request):
    """(namespace, converter from NumPy) of one array library; JAX in float64 as well as float32."""
    if request.param == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        yield _jax()
        jax.config.update("jax_enable_x64", False)
    else:
        yield {"numpy": _numpy, "torch": _torch}[request.param]()


@pytest.fixture(scope="session")
def songs(tmp_path_factory):
    """A data set in MUSDB18-HQ layout: two training songs, one validation song, one test song and one real song."""
    root = tmp_path_factory.mktemp("set")
    lines = ["track,split"]
    for seed, (name, split) in enumerate(
        [("a", "train"), ("b", "train"), ("v", "valid"), ("t", "test"), ("r", "real")]
    ):
        write_song(root / ("train" if split in ("train", "valid") else "test") / name, seed=seed)
        lines.append(f"{name},{split}")
    (root / "splits.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def micro(songs):
    """A model of some thousand weights and one level on that data set: JAX compiles a step of it in seconds."""
    return preset("tiny").override(
        {
            "model": {
                "d_model": 8,
                "n_heads": 2,
                "bands": "vocal18",
                "levels": 1,
                "mixer": {"kind": "mamba", "d_state": 4},
            },
            "data": {"root": str(songs)},
            "training": {
                "steps": 4,
                "segment_seconds": 0.5,
                "validate_every": 2,
                "validation_tracks": 1,
                "validation_seconds": 1,
                "warmup_steps": 1,
            },
        }
    )


@pytest.fixture
def no_pictures(monkeypatch):
    """Turn off the spectrograms of a run, which take longer than the steps between them."""
    from twinsep.audio import spectrogram

    monkeypatch.setattr(spectrogram, "draw_spectrograms", lambda *_, **__: b"")


@pytest.fixture
def stopping():
    """stopping(trainer, n): a context whose run Ctrl-C ends at the start of its n-th step; its value has the error."""

    @contextlib.contextmanager
    def stopping(trainer, step):
        take, calls = trainer.step, []

        def counted(self, *arguments):
            calls.append(1)
            if len(calls) == step:
                raise KeyboardInterrupt
            return take(self, *arguments)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(trainer, "step", counted)
            with pytest.raises(Interrupted) as ended:
                yield ended

    return stopping


@pytest.fixture
def dtype(request):
    """ "float32", or "float64", which JAX has only inside this fixture; parametrize it indirectly."""
    import jax

    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def one_thread():
    """Compute on one thread, which is fastest for small tensors."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
