"""Parity of the twins, by the measurements of the stage ``parity``: equal weights give equal numbers.

Every pair of model options, mixers included, occurs in one of the cases. All cases are compared in float64, in which
rounding cannot hide a difference in meaning; all modules and two networks also in float32. Most time goes into
compiling: eight cases are compared with one level of the U-Net here, and whole by the stage.
"""

import numpy as np
import pytest

import jax_impl
import torch_impl
from ablations import comparison
from ablations.comparison import DTYPES, TOLERANCE, cases, configuration, distance
from ablations.stages import parity
from twinsep.config.mixers import MIXERS
from twinsep.errors import InputError

CASES = cases()
FIRST = next(iter(CASES))
MODULE_CASES = [
    pytest.param(case, names, dtype, id=f"{case} {dtype}")
    for case, names in comparison.module_cases()
    for dtype in DTYPES
]


@pytest.mark.parametrize(("case", "names", "dtype"), MODULE_CASES, indirect=["dtype"])
def test_each_module_agrees_forward_and_backward(case, names, dtype):
    config = configuration(CASES[case])
    found = comparison.modules_in_jax(config, dtype, names)
    in_torch = comparison.modules_in_torch(config, dtype, names)
    assert set(found) == set(in_torch) == set(names or comparison.modules(config))
    for name, wanted in in_torch.items():
        arrays = found[name]
        assert arrays["y"].dtype == wanted["y"].dtype == dtype
        assert distance(arrays, wanted, "y") <= TOLERANCE["block"][dtype], name
        assert distance(arrays, wanted, "d ") <= TOLERANCE["gradients"][dtype], name


#: Cases compared with one level: their mixers stand in a whole network of another case.
ONE_LEVEL = [
    FIRST,
    "mamba2; aligned; one stem; mid/side",
    "mamba2; reference; two stems and the rest; left/right",
    "transformer; aligned; two stems and the rest; left/right",
    "transformer; reference; one stem; mid/side",
    "lstm; reference; two stems and the rest; mid/side",
    "conv; aligned; one stem; left/right",
    "conv; reference; two stems and the rest; mid/side",
]
NETWORKS = [(case, "float64", True) for case in CASES if case != "mamba; one level"]  # which is FIRST with one level
NETWORKS += [
    (case, "float32", True) for case in CASES if case.startswith(("mamba, one direction", "transformer; aligned"))
]
#: Without JAX's kernels, which share their loops with PyTorch's.
NETWORKS += [("mamba; one level", dtype, False) for dtype in DTYPES]


@pytest.mark.parametrize(("case", "dtype", "kernels"), NETWORKS, indirect=["dtype"])
def test_the_network_and_the_gradients_of_the_full_loss_agree(case, dtype, kernels):
    options = CASES[case] | ({"levels": 1} if case in ONE_LEVEL else {})
    if not kernels:  # the other direction calls the same operations
        options |= {"mixer": {"kind": "mamba", "d_state": 4, "directions": 1}}
    config = configuration(options)
    draws = [(comparison.QUIET, seed) for seed in range(3 if dtype == "float32" else 1)]  # in float32 rounding counts
    computed = comparison.network_in_jax(config, dtype, draws, kernels=kernels)
    for found, wanted in zip(computed, comparison.network_in_torch(config, dtype, draws), strict=True):
        assert found["y"].dtype == dtype
        assert distance(found, wanted, "y") <= TOLERANCE["network"][dtype]
        assert distance(found, wanted, "loss") <= TOLERANCE["network"][dtype]
        assert distance(found, wanted, "d input") <= TOLERANCE["gradients"][dtype]
        assert distance(found, wanted, "d ") <= TOLERANCE["gradients"][dtype]
        name, worst = comparison.worst_leaf(found, wanted)
        assert worst <= 30 * TOLERANCE["gradients"][dtype], name


def test_the_cases_cover_every_pair_of_options():
    product = [name.split("; ") for name in CASES if len(name.split("; ")) == 4]
    seen = set().union(*map(comparison.pairs, product))
    options = [{case[i] for case in product} for i in range(4)]
    assert options[0] == set(MIXERS)
    assert set(ONE_LEVEL) < set(CASES)
    whole = {name.split(";")[0] for name in CASES if name not in ONE_LEVEL and CASES[name].get("levels", 3) == 3}
    assert whole >= set(MIXERS)
    assert len(seen) == sum(len(a) * len(b) for i, a in enumerate(options) for b in options[i + 1 :])


#: The smallest network: the optimiser does not depend on the architecture.
STEPPED = {"mixer": {"kind": "conv", "kernel": 3}, "levels": 1}
# Of few bins, because XLA convolves in float64 slowly on a CPU.
BATCH_NORM = {**CASES["spectrogram U-Net"], "max_frequency": 500.0}


@pytest.mark.parametrize(  # STEPPED in float64: test_steps_agree_without_a_mutation
    ("dtype", "model"),
    [("float32", STEPPED), ("float64", BATCH_NORM), ("float32", BATCH_NORM)],
    ids=["float32-conv", "float64-batch norm", "float32-batch norm"],
    indirect=["dtype"],
)
def test_ten_optimiser_steps_and_the_average_agree(dtype, model):
    config = configuration(model)
    found = parity.training_distance(config, dtype)
    assert found["parameters"] <= TOLERANCE["steps"][dtype]
    assert found["average"] <= TOLERANCE["steps"][dtype]
    assert found["first moments"] <= 100 * TOLERANCE["steps"][dtype]


def test_a_separated_song_agrees():
    config = configuration({"mixer": {"kind": "mamba", "d_state": 4}})
    assert parity.song_snr(config) >= comparison.SONG_SNR_DB


def test_distance_detects_names_shapes_and_values():
    a = {"d x": np.ones(3), "y": np.zeros(2)}
    assert distance(a, a) == 0
    assert distance({"d x": np.ones(3)}, a) == np.inf
    assert distance({**a, "d x": np.ones(4)}, a) == np.inf
    assert distance({**a, "d x": np.array([1, 1, 1.3])}, a, "d ") == pytest.approx(0.3 / 3**0.5)


def test_load_accepts_a_preset_and_rejects_an_unknown_name():
    model = jax_impl.load("tiny", seed=1)
    assert model.stems == ("instrumental",)
    assert model.parameter_count == torch_impl.load("tiny").parameter_count
    with pytest.raises(InputError, match="neither a checkpoint nor one of the presets"):
        jax_impl.load("no-such-thing")
    with pytest.raises(InputError, match="cannot be used here"):
        jax_impl.load("tiny", device="nonsense")
