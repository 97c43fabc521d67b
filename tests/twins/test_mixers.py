"""The PyTorch mixers against independent modules with the same weights; :mod:`test_parity` compares JAX with them."""

import numpy as np
import pytest
import torch
from helpers.oracles import need_mamba_ssm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_impl import mixers, ops
from torch_impl.layers import initialise, named_parameters
from torch_impl.mixers.mamba2 import CHUNK, dual_scan
from twinsep.config import preset
from twinsep.config.mixers import MIXERS, Mamba, Mamba2


def configuration(d_model=12, **mixer):
    return preset("tiny").override({"model": {"d_model": d_model, "n_heads": 2, "mixer": mixer}}).model


def mixer(weights, **options):
    """Our mixer with the weights of another module, which must have exactly the same names."""
    made = mixers.build(configuration(**options))
    made.load_state_dict(weights)
    return made


def test_both_registries_have_the_same_kinds():
    assert list(mixers.MIXERS) == list(MIXERS)


@pytest.mark.parametrize("length", [1, 7, 50])
def test_mamba_agrees_with_mamba_ssm(length):
    torch.manual_seed(0)
    theirs = need_mamba_ssm().Mamba(d_model=12, d_state=5, use_fast_path=False)
    x = torch.randn(2, length, 12)
    torch.testing.assert_close(mixer(theirs.state_dict(), kind="mamba", d_state=5)(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "head"), [(12, 8), (12, 64), (64, 64)])
def test_mamba2_agrees_with_mamba_ssm(width, head):
    torch.manual_seed(0)
    inner = 2 * width
    theirs = need_mamba_ssm().Mamba2Simple(
        d_model=width, d_state=5, headdim=min(head, inner), chunk_size=16, use_mem_eff_path=False
    )
    x = torch.randn(2, 6 * 16, width)
    ours = mixer(theirs.state_dict(), d_model=width, kind="mamba2", d_state=5, head_dim=head)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_lstm_agrees_with_torch():
    torch.manual_seed(0)
    theirs = nn.LSTM(12, 12, batch_first=True)
    x = torch.randn(3, 20, 12)
    weights = {name.removesuffix("_l0"): w for name, w in theirs.state_dict().items()}
    torch.testing.assert_close(mixer(weights, kind="lstm")(x), theirs(x)[0])


def test_conv_agrees_with_torch():
    torch.manual_seed(0)
    depthwise, pointwise = nn.Conv1d(12, 12, 31, padding=15, groups=12), nn.Linear(12, 12)
    both = {"depthwise": depthwise, "pointwise": pointwise}
    weights = {f"{name}.{key}": w for name, module in both.items() for key, w in module.state_dict().items()}
    x = torch.randn(3, 40, 12)
    torch.testing.assert_close(mixer(weights, kind="conv")(x), pointwise(depthwise(x.mT).mT), rtol=1e-5, atol=1e-6)


def recurrence(u, delta, A, B, C):
    """Mamba-2's scan by its definition, frame by frame."""
    h, y = np.zeros((*u.shape[:1], *u.shape[2:], B.shape[-1])), np.empty(u.shape)
    for t in range(u.shape[1]):
        decay = np.exp(delta[:, t] * A)
        h = decay[..., None, None] * h + np.einsum("bhp,bn->bhpn", delta[:, t, :, None] * u[:, t], B[:, t])
        y[:, t] = np.einsum("bhpn,bn->bhp", h, C[:, t])
    return y


@settings(max_examples=20)
@given(
    st.sampled_from([1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 150, 300]), st.integers(1, 3), st.sampled_from([1e-3, 1, 50])
)
def test_dual_scan_agrees_with_the_recurrence(length, heads, scale):
    rng = np.random.default_rng(length)
    u = rng.standard_normal((2, length, heads, 4))
    delta = scale * rng.uniform(0.01, 1, (2, length, heads))
    A, B, C = -rng.uniform(1, 16, heads), *rng.standard_normal((2, 2, length, 3))
    wanted = recurrence(u, delta, A, B, C)
    for dtype, bar in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        found = dual_scan(*(torch.from_numpy(x).to(dtype) for x in (u, delta, A, B, C))).double().numpy()
        assert np.abs(found - wanted).max() <= bar * np.abs(wanted).max()


def test_mamba2_has_the_papers_initial_weights():
    made = mixers.build(configuration(kind="mamba2", head_dim=4))
    initialise(made, 0)
    weights = named_parameters(made)
    assert 1 <= weights["A_log"].exp().min() < weights["A_log"].exp().max() <= 16
    steps = nn.functional.softplus(weights["dt_bias"])
    assert 1e-3 * 0.99 <= steps.min() < steps.max() <= 0.1 * 1.01
    assert (weights["D"] == 1).all()


@pytest.mark.parametrize("kind", [k for k in MIXERS if k not in ("transformer", "conv")])
def test_causal_mixers_do_not_see_the_future(kind):
    made = mixers.build(configuration(kind=kind))
    initialise(made, 0)
    x = torch.randn(1, 30, 12)
    y, changed = made(x), made(torch.cat([x[:, :20], torch.randn(1, 10, 12)], 1))
    torch.testing.assert_close(changed[:, :20], y[:, :20])
    assert not torch.allclose(changed[:, 20:], y[:, 20:])


def test_one_direction_has_one_mixer():
    assert (Mamba().passes, Mamba(directions=1).passes, Mamba2(directions=1).passes) == (2, 1, 1)
    one = preset("tiny").override({"model": {"mixer": {"directions": 1}}})
    from torch_impl.networks import build

    with torch.device("meta"):
        names = named_parameters(build(one))
    assert "enc1.0.dual_path.time.mixer.A_log" in names
    assert not any("backwards" in name for name in names)


def test_softplus_saves_only_its_output():
    x = torch.linspace(-30, 30, 301, dtype=torch.float64, requires_grad=True)
    y = ops.softplus(x)
    torch.testing.assert_close(y, torch.log1p(torch.exp(x)), rtol=1e-8, atol=1e-12)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, torch.sigmoid(x), rtol=1e-8, atol=1e-15)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        again = ops.softplus(x)
    assert saved == [again.data_ptr()]
