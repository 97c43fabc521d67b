"""Every loss against its equation in plain NumPy, and the frameworks against each other."""

import functools

import numpy as np
import pytest

from twinsep import bands
from twinsep.config import LOSS_NAMES, preset
from twinsep.errors import InputError
from twinsep.losses import LOSSES, loudness_weight, mix

CONFIG = preset("tiny")
SAMPLES = 6000

#: Tolerances by dtype of the waveforms, for values and for ‖Δ‖/‖g‖ of gradients; all losses are computed in float64.
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-6}


def signals(rms=0.1, error=0.3, shape=(2, 2, SAMPLES), seed=0):
    """White noise (estimate, target, mixture); the error of the estimate is ``error`` times the target's level."""
    rng = np.random.default_rng(seed)
    target = rms * rng.standard_normal(shape)
    estimate = 0.9 * target + error * rms * rng.standard_normal(shape)
    return tuple(np.float64(np.float32(x)) for x in (estimate, target, target + rms * rng.standard_normal(shape)))


# ---------------------------------------------------------------- the equations


def spectrum(x, n_fft, hop):
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(n_fft // 2, n_fft // 2)], mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=-1)[..., ::hop, :]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    return np.fft.rfft(frames * window).swapaxes(-1, -2)


def model_spectra(*xs):
    return tuple(spectrum(x, CONFIG.model.n_fft, CONFIG.model.hop) for x in xs)


def expected_magnitude(e, x, _):
    E, X = model_spectra(e, x)
    return np.mean(np.abs(np.abs(E) - np.abs(X)))


def expected_band(e, x, _):
    E, X = model_spectra(e, x)
    difference = np.abs(np.log(np.abs(E) + 1e-3) - np.log(np.abs(X) + 1e-3))
    return np.mean([np.mean(difference[:, :, lo:hi]) for lo, hi in bands.table("vocal72")])


def expected_log_magnitude(e, x, _):
    E, X = (np.abs(z)[:, :, :1024] for z in model_spectra(e, x))
    return np.mean(np.abs(np.log(E + 1e-7) - np.log(X + 1e-7)))


def decibels(e, x):
    values = []
    for one, other in zip(e.reshape(len(e), -1), x.reshape(len(x), -1), strict=True):
        a, b = one - one.mean(), other - other.mean()
        s = (a @ b) * b / (b @ b + 1e-6)
        values.append(10 * np.log10((s @ s + 1e-6) / ((a - s) @ (a - s) + 1e-6) + 1e-8))
    return np.array(values)


def expected_si_sdr(e, x, _):
    return np.mean(np.clip((40 - decibels(e, x)) / 20, 0, 2))


def expected_si_sdr_unclipped(e, x, _):
    return np.mean(-decibels(e, x) / 20 + 2)


def expected_mr_stft(e, x, _):
    values = []
    for n_fft in (512, 1024, 2048):
        E, X = (np.abs(spectrum(z, n_fft, n_fft // 4)) for z in (e, x))
        values.append(np.mean(np.abs(E - X)) + np.mean(np.abs(np.log(E + 1e-7) - np.log(X + 1e-7))))
    return np.mean(values)


def expected_spectral_sdr(e, x, _):
    E, X = (np.abs(z) for z in model_spectra(e, x))
    wanted, error = (np.sum(z**2, axis=(2, 3)) for z in (X, X - E))
    return np.mean(np.clip((40 - 10 * np.log10((wanted + 1e-6) / (error + 1e-6))) / 40, 0, 1))


def expected_waveform_l1(e, x, _):
    return np.mean(np.abs(e - x))


def expected_mr_stft_complex(e, x, _):
    return np.mean([np.mean(np.abs(spectrum(e, n, 147) - spectrum(x, n, 147))) for n in (4096, 2048, 1024, 512, 256)])


def expected_mixture_phase_l1(e, x, m):
    E, X, M = model_spectra(e, x, m)
    turn = np.exp(1j * np.angle(M))
    return np.mean(np.abs(np.abs(E) * turn - np.abs(X) * turn))


def expected_compressed(e, x, _):
    E, X = model_spectra(e, x)
    E_size, X_size = (np.sqrt(np.abs(z) ** 2 + 1e-10) for z in (E, X))
    magnitude = np.mean((E_size**0.3 - X_size**0.3) ** 2)
    return 5 * (0.7 * magnitude + 0.3 * np.mean(np.abs(E * E_size**-0.7 - X * X_size**-0.7) ** 2))


def expected(name, *waveforms):
    return globals()[f"expected_{name}"](*waveforms)


# ---------------------------------------------------------------- values


def test_every_configurable_loss_exists():
    assert tuple(LOSSES) == LOSS_NAMES


def value(framework, loss, e, x, m):
    if framework == "numpy":
        found = loss(e, x, mixture=m, config=CONFIG)
        assert found.dtype == e.dtype
        assert found.shape == ()
        return float(found)
    return {"torch": torch_gradient, "jax": jax_gradient}[framework](loss, e, x, m)[0]


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_value_agrees_with_the_equation(framework, name):
    for rms in (0.01, 0.1, 0.5):
        waveforms = signals(rms)
        wanted = expected(name, *waveforms)
        for dtype, tolerance in TOLERANCE.items():
            found = value(framework, LOSSES[name], *(z.astype(dtype) for z in waveforms))
            np.testing.assert_allclose(found, wanted, rtol=tolerance)


def test_band_ignores_a_bin_outside_every_band():
    """The loss is the mean of 68 band means, none of which includes the Nyquist bin."""
    config = CONFIG.override({"model": {"bands": "uniform72"}, "loss": {"bands": "reference68"}})
    e, x, m = signals()
    E, X = (np.log(np.abs(z) + 1e-3) for z in model_spectra(e, x))
    wanted = np.mean([np.mean(np.abs(E - X)[:, :, lo:hi]) for lo, hi in bands.table("reference68")])
    np.testing.assert_allclose(LOSSES["band"](e, x, mixture=m, config=config), wanted, rtol=1e-12)


def test_log_floor_of_the_configuration_is_used():
    e, x, m = signals(0.01)
    values = [
        LOSSES["band"](e, x, mixture=m, config=CONFIG.override({"loss": {"log_floor": floor}})) for floor in (1e-7, 1.0)
    ]
    assert values[0] > 2 * values[1]


# ---------------------------------------------------------------- gradients


def torch_gradient(loss, e, x, m):
    torch = pytest.importorskip("torch")
    leaf = torch.tensor(e, requires_grad=True)
    value = loss(leaf, torch.tensor(x), mixture=torch.tensor(m), config=CONFIG)
    value.backward()
    return value.item(), leaf.grad.numpy()


@functools.cache
def jax_step(loss):
    """Value and gradient, compiled once for all tests with the same shapes."""
    jax = pytest.importorskip("jax")
    return jax.jit(jax.value_and_grad(lambda e, x, m: loss(e, x, mixture=m, config=CONFIG)))


def jax_gradient(loss, e, x, m):
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", e.dtype == np.float64)
    try:
        value, gradient = jax_step(loss)(e, x, m)
        assert value.dtype == gradient.dtype == e.dtype
        return float(value), np.asarray(gradient)
    finally:
        jax.config.update("jax_enable_x64", before)


def relative(a, b):
    return np.linalg.norm(np.float64(a) - b) / np.linalg.norm(np.float64(b))


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_gradients_agree_between_frameworks(name):
    """With the reference's floor of 1e-7, other draws with spectral nulls can differ by 4e-11 even in float64."""
    for rms in (0.01, 0.1, 0.5):
        waveforms = signals(rms)
        wanted = torch_gradient(LOSSES[name], *waveforms)
        for dtype, tolerance in TOLERANCE.items():
            narrow = [z.astype(dtype) for z in waveforms]
            for gradient_of in (torch_gradient, jax_gradient):
                value, gradient = gradient_of(LOSSES[name], *narrow)
                np.testing.assert_allclose(value, wanted[0], rtol=tolerance)
                assert relative(gradient, wanted[1]) < tolerance
                assert gradient.dtype == dtype


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_gradient_agrees_with_finite_differences(name):
    """Compares with central differences of the NumPy loss in float64, along a direction and at single samples."""
    e, x, m = signals()
    _, gradient = torch_gradient(LOSSES[name], e, x, m)
    rng = np.random.default_rng(1)
    directions = [rng.standard_normal(e.shape)]
    for index in ((0, 0, 0), (0, 1, 700), (1, 1, SAMPLES - 1)):
        directions.append(np.zeros_like(e))
        directions[-1][index] = 1
    for direction in directions:
        step = 1e-8 if np.count_nonzero(direction) > 1 else 1e-6
        up, down = (LOSSES[name](e + sign * step * direction, x, mixture=m, config=CONFIG) for sign in (1, -1))
        slope, size = (up - down) / (2 * step), np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(slope - np.sum(gradient * direction)) < 1e-3 * size


@pytest.mark.parametrize(("error", "zero"), [(3e-4, True), (0.3, False), (3.0, True)])
def test_si_sdr_has_no_gradient_outside_0_to_40_db(error, zero):
    e, x, m = signals(error=error)
    v = decibels(e, x)
    assert (v > 40).all() or (v < 0).all() if zero else ((v > 0) & (v < 40)).all()
    for gradient_of in (torch_gradient, jax_gradient):
        _, clipped = gradient_of(LOSSES["si_sdr"], e, x, m)
        _, unclipped = gradient_of(LOSSES["si_sdr_unclipped"], e, x, m)
        assert np.any(unclipped)
        assert not np.any(clipped) if zero else relative(clipped, unclipped) < 1e-12


CASES = ("both silent", "estimate silent", "target silent", "equal", "full scale")


def extreme(case, dtype):
    shape = (2, 2, SAMPLES)
    noise = np.random.default_rng(0).uniform(-1, 1, shape).astype(dtype)
    zero, full = np.zeros(shape, dtype), np.sign(noise)
    pairs = ((zero, zero), (zero, noise), (noise, zero), (noise, noise), (full, -np.roll(full, 7)))
    return dict(zip(CASES, pairs, strict=True))[case]


def everything(*args, **kwargs):
    return sum(loss(*args, **kwargs) for loss in LOSSES.values())


@pytest.mark.parametrize("case", CASES)
def test_extreme_inputs_have_finite_values_and_equal_gradients(case):
    e, x = extreme(case, np.float32)
    (t, gt), (j, gj) = (gradient_of(everything, e, x, x) for gradient_of in (torch_gradient, jax_gradient))
    np.testing.assert_allclose(t, j, rtol=TOLERANCE[np.float32])
    assert np.isfinite([t, j]).all()
    assert np.isfinite(gt).all()
    assert np.isfinite(gj).all()
    if case == "both silent":
        assert not np.any(gt)
        assert not np.any(gj)
    elif case != "equal":  # there the error (−160 dB) and its gradient are rounding errors of SI-SDR's projection
        assert relative(gt, gj) < TOLERANCE[np.float32]


@pytest.mark.parametrize("case", ["target silent", "full scale"])
def test_extreme_inputs_agree_closely_in_float64(case):
    """Includes ties: if e = x exactly, the gradient of a distance is 0 in every framework."""
    e, x = extreme(case, np.float64)
    (t, gt), (j, gj) = (gradient_of(everything, e, x, x) for gradient_of in (torch_gradient, jax_gradient))
    np.testing.assert_allclose(t, j, rtol=1e-12)
    assert relative(gt, gj) < 1e-9


# ---------------------------------------------------------------- the mix


def test_mix_is_the_weighted_sum_of_its_terms(xp):
    _, array = xp
    e, x, m = signals(0.1)
    total, terms = mix(*(array(z) for z in (e, x)), mixture=array(m), config=CONFIG)
    assert set(terms) == {"magnitude", "band", "si_sdr"}
    for name, value in terms.items():
        np.testing.assert_allclose(float(value), expected(name, e, x, m), rtol=1e-12)
    plain = 0.25 * terms["magnitude"] + 0.5 * terms["band"] + 2.5 * terms["si_sdr"]
    r = np.sqrt(np.mean(x[:, 0] ** 2) + np.mean(x[:, 1] ** 2))
    np.testing.assert_allclose(float(total), float(plain) * (1 + 2 * r), rtol=1e-12)


def test_loudness_weighting_saturates_and_the_sum_is_clipped_at_20():
    e, x, m = signals(0.5)
    assert loudness_weight(x, np) == 2
    assert loudness_weight(0 * x, np) == 1
    heavy = {"loss": {"weights": {"waveform_l1": 1000.0}}}
    total, terms = mix(e, x, mixture=m, config=CONFIG.override(heavy))
    assert total == 20
    heavy["loss"]["loudness_weighting"] = False
    total, _ = mix(e, x, mixture=m, config=CONFIG.override(heavy))
    assert total == 1000 * terms["waveform_l1"] > 20


def test_terms_of_weight_zero_are_not_computed(monkeypatch):
    from twinsep import losses

    monkeypatch.setitem(losses._TERMS, "mr_stft", lambda _: pytest.fail("computed a term of weight 0"))
    weights = {"weights": {"waveform_l1": 1.0, "mr_stft": 0.0}}
    e, x, m = signals()
    assert set(mix(e, x, mixture=m, config=CONFIG.override({"loss": weights}))[1]) == {"waveform_l1"}


def test_terms_share_the_stft_of_a_resolution(monkeypatch):
    from twinsep import losses

    calls = []
    original = losses.stft
    monkeypatch.setattr(losses, "stft", lambda x, **grid: calls.append(grid["n_fft"]) or original(x, **grid))
    weights = dict.fromkeys(("magnitude", "band", "log_magnitude", "spectral_sdr", "mr_stft"), 1.0)
    e, x, m = signals()
    mix(e, x, mixture=m, config=CONFIG.override({"model": {"hop": 512}, "loss": {"weights": weights}}))
    # Once each for estimate and target; mr_stft shares the model's STFT (n_fft 2048, hop 512).
    assert sorted(calls) == [512, 512, 1024, 1024, 2048, 2048]


def test_losses_average_over_stems():
    weights = dict.fromkeys([name for name in LOSS_NAMES if not name.startswith("mr_")], 1.0)
    e, x, m = signals(shape=(2, 3, 2, SAMPLES))
    config = CONFIG.override({"loss": {"weights": weights, "loudness_weighting": False}})
    total, terms = mix(e, x, mixture=m[:, 0], config=config)
    single = [{name: expected(name, e[:, i], x[:, i], m[:, i]) for name in weights} for i in range(3)]
    for name in weights:
        np.testing.assert_allclose(float(terms[name]), np.mean([one[name] for one in single]), rtol=1e-12)
    np.testing.assert_allclose(float(total), sum(float(v) for v in terms.values()), rtol=1e-12)


def test_shapes_that_do_not_match_are_rejected():
    e, x, m = signals()
    with pytest.raises(InputError, match=r"not \(2, 2, 6000\) and \(2, 2, 5999\)"):
        mix(e, x[..., :-1], mixture=m, config=CONFIG)
    with pytest.raises(InputError, match="must both be"):
        LOSSES["si_sdr"](e[0], x[0], mixture=m, config=CONFIG)


def test_clipping_does_not_hide_nan():
    e, x, m = signals()
    e[0, 0, 5] = np.nan
    assert np.isnan(mix(e, x, mixture=m, config=CONFIG)[0])
