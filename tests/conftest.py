"""Fixtures that several test files share."""

import atexit
import contextlib
import os
import shutil
import signal
import tempfile

# Most of the time of JAX's tests goes into compiling. Without these emitters and most passes XLA compiles in a third of
# it, and what one process or test has compiled the others find; the programs are slower, and compute the same. Read
# when JAX starts, in the processes that tests start too.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Vectors as long as twinsep asks for: what is imported first decides, and all processes are to compute the same.
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_prefer_vector_width=512"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="twinsep-xla-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Without a GPU its kernels are interpreted: read when Triton is imported, which PyTorch does on its own.
if not os.path.exists("/dev/nvidiactl"):  # noqa: PTH110 - what is imported here is to be little
    os.environ["TRITON_INTERPRET"] = "1"
# A shell that has the tests run in the background has them ignore Ctrl-C, which some of them press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests run in a process for each of two cores, so one thread in each; the tests about threads ask for more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

from ablations.fault_injection import write_song
from twinsep.config import preset

settings.register_profile("twinsep", deadline=None, derandomize=True)
settings.load_profile("twinsep")


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
    """A set in MUSDB18-HQ layout: two songs to train on, one each to validate on, to test on and "real"."""
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
    """A model of thousands of weights on that set: a step takes a few hundredths of a second."""
    return preset("tiny").override(
        {
            "model": {"d_model": 8, "n_heads": 2, "bands": "vocal18", "mixer": {"kind": "mamba", "d_state": 4}},
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
def stopping():
    """stopping(trainer, n): a context whose run is interrupted as it begins its n-th step, as by Ctrl-C."""

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
            with pytest.raises(KeyboardInterrupt):
                yield

    return stopping


@pytest.fixture
def dtype(request):
    """ "float64", which JAX has only inside this fixture, or "float32"; parametrize it indirectly."""
    import jax

    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def one_thread():
    """Small tensors are fastest on one thread; the tests about threads ask for more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
