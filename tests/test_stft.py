"""STFT and inverse against their definition and torch's own, and perfect reconstruction."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinsep.stft import causal_envelope, causal_istft, causal_stft, frame_spectra, istft, stft, windowed_frames

GRIDS = [(2048, 256), (2048, 512), (1024, 147), (512, 128), (256, 100), (64, 32), (4096, 147), (2, 1)]
LENGTHS = [1, 2, 31, 33, 128, 129, 512, 1000, 1024, 1025, 1500, 2048, 2049, 2600, 3000]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def there_and_back(xp, x, n_fft, hop):
    """Apply STFT and inverse to a signal, in JAX inside ``jit``."""
    namespace, array = xp

    def both(x):
        return istft(stft(x, n_fft=n_fft, hop=hop), n_fft=n_fft, hop=hop, length=x.shape[-1])

    if "jax" in namespace.__name__:
        import jax

        both = jax.jit(both)
    result = both(array(x))
    assert result.dtype == array(x).dtype
    return np.asarray(result)


def direct(x, n_fft, hop):
    """Compute Σ_n w[n]·x[t·hop + n − n_fft/2]·exp(−2πi f n/n_fft) as a sum."""
    padded = np.pad(x, n_fft // 2, mode="reflect")
    n = np.arange(n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / n_fft)
    kernel = window * np.exp(-2j * np.pi * np.outer(np.arange(n_fft // 2 + 1), n) / n_fft)
    return np.stack([kernel @ padded[t : t + n_fft] for t in range(0, len(x) + 1, hop)], axis=1)


@pytest.mark.parametrize(("n_fft", "hop"), [(64, 16), (32, 12), (16, 16), (8, 11)])
def test_forward_agrees_with_its_definition(xp, n_fft, hop):
    _, array = xp
    x = noise(500)
    found = np.asarray(stft(array(x), n_fft=n_fft, hop=hop))
    assert found.shape == (n_fft // 2 + 1, 1 + 500 // hop)
    np.testing.assert_allclose(found, direct(x, n_fft, hop), atol=1e-12)


@pytest.mark.parametrize("n_fft_hop", GRIDS, ids=str)
def test_reconstruction_is_exact_in_float64(xp, n_fft_hop):
    n_fft, hop = n_fft_hop
    # JAX compiles for every length, so test fewer lengths there.
    for length in (1, 1500) if "jax" in xp[0].__name__ else LENGTHS:
        x = noise(2, length, seed=length)
        back = there_and_back(xp, x, n_fft, hop)
        np.testing.assert_allclose(back, x, atol=1e-12, err_msg=f"length {length}")


@pytest.mark.parametrize("n_fft_hop", [g for g in GRIDS if 4 * g[1] <= g[0]], ids=str)
def test_reconstruction_is_within_1e_6_in_float32(xp, n_fft_hop):
    n_fft, hop = n_fft_hop
    for length in (1, 3000):
        x = noise(2, length).astype(np.float32) * 0.3
        np.testing.assert_allclose(there_and_back(xp, x, n_fft, hop), x, atol=1e-6)


@given(st.integers(1, 3000), st.integers(1, 200), st.data())
def test_reconstruction_of_any_length_on_any_grid(length, half, data):
    hop = data.draw(st.integers(max(1, half // 12), half))
    x = noise(length, seed=length)
    spectra = stft(x, n_fft=2 * half, hop=hop)
    assert spectra.shape == (half + 1, 1 + max(length, half + 1) // hop)
    np.testing.assert_allclose(istft(spectra, n_fft=2 * half, hop=hop, length=length), x, atol=1e-6)


def test_short_signals_are_zero_padded():
    x = noise(3, 100)
    padded = np.pad(x, ((0, 0), (0, 1025 - 100)))
    np.testing.assert_array_equal(stft(x, n_fft=2048, hop=256), stft(padded, n_fft=2048, hop=256))


@pytest.mark.parametrize("n_fft_hop", [(2048, 512), (512, 147), (256, 300)], ids=str)
def test_forward_and_its_gradient_agree_with_torch(n_fft_hop):
    torch = pytest.importorskip("torch")
    n_fft, hop = n_fft_hop
    x = torch.tensor(noise(3, 6000), requires_grad=True)
    window = torch.hann_window(n_fft, dtype=x.dtype)
    theirs = torch.stft(x, n_fft, hop, window=window, return_complex=True)
    ours = stft(x, n_fft=n_fft, hop=hop)
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)
    weight = torch.tensor(noise(*theirs.shape, 2))
    (g_ours,), (g_theirs,) = (
        torch.autograd.grad((torch.view_as_real(y.resolve_conj()) * weight).sum(), x) for y in (ours, theirs)
    )
    torch.testing.assert_close(g_ours, g_theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("n_fft_hop", [(2048, 512), (512, 100), (512, 256)], ids=str)
def test_inverse_of_any_spectra_agrees_with_torch(n_fft_hop):
    """Uses spectra of no signal, complex in both end bins, and includes the tail after the last hop."""
    torch = pytest.importorskip("torch")
    n_fft, hop = n_fft_hop
    frames = 20
    length = (frames - 1) * hop + min(hop - 1, n_fft // 4)
    spectra = torch.tensor(noise(2, n_fft // 2 + 1, frames) + 1j * noise(2, n_fft // 2 + 1, frames, seed=1))
    theirs = torch.istft(spectra, n_fft, hop, window=torch.hann_window(n_fft, dtype=torch.float64), length=length)
    torch.testing.assert_close(istft(spectra, n_fft=n_fft, hop=hop, length=length), theirs, atol=1e-12, rtol=0)


def test_inverse_ignores_imaginary_parts_of_the_end_bins(xp):
    _, array = xp
    spectra = noise(33, 9) + 1j * noise(33, 9, seed=1)
    real = spectra.copy()
    real[[0, -1]] = real[[0, -1]].real
    a, b = (np.asarray(istft(array(z), n_fft=64, hop=16, length=130)) for z in (spectra, real))
    np.testing.assert_array_equal(a, b)


def test_frameworks_agree_under_jit_and_autograd():
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
    x = noise(2, 3000).astype(np.float32)

    def energy(x):
        y = istft(stft(x, n_fft=512, hop=147) ** 2, n_fft=512, hop=147, length=3000)
        return (y**2).mean()

    value, gradient = jax.jit(jax.value_and_grad(energy))(x)
    leaf = torch.tensor(x, requires_grad=True)
    total = energy(leaf)
    total.backward()
    np.testing.assert_allclose(value, total.detach(), rtol=1e-5)
    scale = np.linalg.norm(gradient)
    assert np.linalg.norm(leaf.grad.numpy() - gradient) < 2e-6 * scale


def test_invalid_arguments_are_rejected():
    x = noise(2000)
    spectra = stft(x, n_fft=512, hop=128)
    with pytest.raises(TypeError, match="float32 or float64"):
        stft(x.astype(np.float16), n_fft=512, hop=128)
    with pytest.raises(ValueError, match="even n_fft"):
        stft(x, n_fft=511, hop=128)
    with pytest.raises(ValueError, match="no inverse"):
        istft(spectra, n_fft=512, hop=300, length=2000)
    with pytest.raises(ValueError, match="no inverse"):
        istft(spectra, n_fft=256, hop=128, length=2000)
    with pytest.raises(ValueError, match="16 frames hold 2176 samples, not 2177"):
        istft(spectra, n_fft=512, hop=128, length=2177)


@pytest.mark.parametrize(("n_fft", "hop"), [(64, 16), (64, 32), (32, 12), (16, 5)])
def test_the_causal_grid_agrees_with_its_definition_and_is_inverted(xp, n_fft, hop):
    _, array = xp
    x = noise(200)
    found = causal_stft(array(x), n_fft=n_fft, hop=hop)
    frames = (200 - 1 + n_fft) // hop
    padded = np.concatenate([np.zeros(n_fft - hop), x, np.zeros(n_fft)])
    wanted = [np.fft.rfft(padded[t * hop : t * hop + n_fft] * np.hanning(n_fft + 1)[:-1]) for t in range(frames)]
    np.testing.assert_allclose(np.asarray(found), np.stack(wanted, 1), atol=1e-12)
    back = np.asarray(causal_istft(found, n_fft=n_fft, hop=hop, length=200))
    np.testing.assert_allclose(back, x, atol=1e-12)


@pytest.mark.parametrize(("n_fft", "hop"), [(64, 16), (64, 32), (32, 12)])
def test_frames_added_one_after_another_are_the_causal_inverse(xp, n_fft, hop):
    _, array = xp
    x = noise(10 * hop)
    spectra = causal_stft(array(x), n_fft=n_fft, hop=hop)
    total, out = np.zeros(n_fft), []
    for t in range(spectra.shape[-1]):
        total = total + np.asarray(windowed_frames(spectra[:, t], n_fft=n_fft))
        out.append(total[:hop] / causal_envelope(n_fft, hop))
        total = np.concatenate([total[hop:], np.zeros(hop)])
    np.testing.assert_allclose(np.concatenate(out)[n_fft - hop :][: len(x)], x, atol=1e-12)
    assert causal_envelope(n_fft, hop).min() >= 0.5 - 1e-12
    first = np.concatenate([np.zeros(n_fft - hop), x[:hop]])
    np.testing.assert_allclose(np.asarray(frame_spectra(array(first))), np.asarray(spectra)[:, 0], atol=1e-12)


def test_a_frame_of_the_causal_grid_reads_no_later_sample():
    x = noise(100)
    changed = np.concatenate([x[:48], noise(52, seed=1)])
    before, after = (causal_stft(y, n_fft=32, hop=16) for y in (x, changed))
    assert (before[:, :3] == after[:, :3]).all()
    assert (before[:, 3:] != after[:, 3:]).any()


def test_the_causal_inverse_refuses_what_it_cannot_invert():
    spectra = causal_stft(noise(100), n_fft=32, hop=16)
    with pytest.raises(ValueError, match="no inverse: n_fft 32 needs 17 bins and a hop of at most 16"):
        causal_istft(spectra, n_fft=32, hop=20, length=10)
    with pytest.raises(ValueError, match="frames hold 112 samples, not 113"):
        causal_istft(spectra, n_fft=32, hop=16, length=113)
    with pytest.raises(TypeError, match="float32 or float64"):
        causal_stft(np.zeros(100, np.float16), n_fft=32, hop=16)
