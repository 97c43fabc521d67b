"""The network: parameter counts, modules against plain definitions, shapes, options."""

import numpy as np
import pytest
import torch

from torch_impl import load
from torch_impl.bandsplit import BandSplit, MaskHead
from torch_impl.blocks import Bidirectional, Downsample, MemoryAttention, SwiGLU, Upsample
from torch_impl.layers import (
    DepthwiseConvSiLU1d,
    DoublingConv1d,
    HalvingConv1d,
    MultiHeadAttention,
    initialise,
    named_parameters,
)
from torch_impl.networks import build
from torch_impl.ops import rms_norm
from twinsep import config
from twinsep.config import preset
from twinsep.errors import InputError
from twinsep.model import pooling

MICRO = {
    "model": {"d_model": 8, "n_heads": 2, "bands": "vocal18", "mixer": {"kind": "mamba", "d_state": 4}},
    "training": {"segment_seconds": 0.5},
}


def micro(**model):
    return preset("tiny").override(MICRO).override({"model": model})


def separator(configuration, seed=0):
    model = build(configuration)
    initialise(model, seed)
    return model


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.from_numpy(0.1 * np.random.default_rng(seed).standard_normal(shape)).to(dtype)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("reference", 64_844_032),
        ("reference-large", 82_246_912),
        ("paper", 66_162_948),
        ("small", 5_209_892),
        ("tiny", 301_044),
        ("bsrnn", 14_593_544),
        ("bs-roformer", 65_100_040),
        ("bsmamba2", 48_138_376),  # 48.1 M in its paper
    ],
)
def test_parameter_count(name, parameters):
    with torch.device("meta"):
        assert build(preset(name)).parameter_count == parameters


@pytest.mark.parametrize("samples", [1, 2, 1023, 3583, 3584, 3585, 5000, 22_050])
def test_output_is_as_long_as_the_input(samples):
    y = separator(micro())(noise(2, 2, samples))
    assert y.shape == (2, 1, 2, samples)
    assert y.isfinite().all()


def test_silence_gives_silence():
    assert separator(micro())(torch.zeros(1, 2, 4000)).abs().max() == 0


def test_all_pass_mask_returns_the_input():
    model = separator(micro())
    with torch.no_grad():
        model.mask_head.weight2.zero_()
        # Per bin L_mag, L_phase, R_mag, R_phase: a logit of 40 is magnitude 1, a logit of 0 is phase 0.
        model.mask_head.bias2.copy_(torch.tensor([40.0, 0.0]).repeat(model.mask_head.bias2.numel() // 2))
    x = noise(1, 2, 9001)
    assert (model(x)[:, 0] - x).abs().max() < 1e-6


def test_mask_logits_are_packed_as_documented():
    model = separator(micro())
    head: MaskHead = model.mask_head
    with torch.no_grad():
        head.weight2.zero_()
        head.bias2.zero_()
        head.bias2[4 * 300 + 0] = 2.0  # bin 300: L_mag
        head.bias2[4 * 300 + 3] = 0.5  # bin 300: R_phase
    mask = head(noise(1, 18, 3, 8))[0, 0]
    expected = torch.full_like(mask, 0.5)
    expected[0, 300] = torch.sigmoid(torch.tensor(2.0))
    expected[1, 300] = torch.polar(torch.tensor(0.5), torch.pi * torch.tanh(torch.tensor(0.5)))
    torch.testing.assert_close(mask, expected)


def test_band_split_is_one_linear_and_norm_per_band():
    model = micro(bands="vocal72", features="complex").model
    split = BandSplit(model)
    initialise(split, 3)
    spectrum = torch.complex(noise(2, 2, 1025, 5, seed=1), noise(2, 2, 1025, 5, seed=2))
    out = split(spectrum)
    for k in (0, 2, 30, 71):
        lo, hi = model.band_table[k]
        reals = torch.stack(
            [part for f in range(lo, hi) for c in (0, 1) for part in (spectrum[:, c, f].real, spectrum[:, c, f].imag)],
            -1,
        )
        y = reals @ split.weight[:, 4 * lo : 4 * hi].T + split.bias[k]
        torch.testing.assert_close(out[:, k], rms_norm(y, split.norm[k]) + split.embedding[0, k])


def test_mask_of_a_nyquist_bin_outside_every_band_is_one_half():
    model = separator(micro(bands="reference68"))
    mask = model.mask_head(noise(1, 68, 4, 8))
    assert mask.shape == (1, 1, 2, 1025, 4)
    assert (mask[..., 1024, :] == 0.5).all()
    assert (mask[..., 1023, :] != 0.5).all()


def test_convolutions_agree_with_the_framework():
    x = noise(3, 11, 6)
    depthwise, down, up = DepthwiseConvSiLU1d(6, 4, left=3), HalvingConv1d(6), DoublingConv1d(6)
    for module in (depthwise, down, up):
        initialise(module, 1)
    f = torch.nn.functional
    causal = f.conv1d(x.mT, depthwise.weight, depthwise.bias, padding=3, groups=6)[..., :11].mT
    torch.testing.assert_close(depthwise(x), f.silu(causal))
    torch.testing.assert_close(down(x), f.conv1d(x.mT, down.weight, down.bias, stride=2).mT)
    torch.testing.assert_close(up(x), f.conv_transpose1d(x.mT, up.weight, up.bias, stride=2).mT)


def test_rms_norm_and_swiglu_agree_with_their_definitions():
    x = noise(2, 3, 8)
    torch.testing.assert_close(
        rms_norm(x, torch.full((8,), 2.0)), 2 * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    )
    ff = SwiGLU(micro().model)
    initialise(ff, 0)
    assert ff.w1.weight.shape == (21, 8)  # ⌊8·4·2/3⌋
    n = rms_norm(x, ff.norm.weight)
    gate = n @ ff.w2.weight.T
    torch.testing.assert_close(ff(x), x + (n @ ff.w1.weight.T * gate * torch.sigmoid(gate)) @ ff.w3.weight.T)


def test_attention_agrees_with_its_definition():
    attention = MultiHeadAttention(8, 2)
    initialise(attention, 0)
    x, m = noise(2, 5, 8), noise(2, 7, 8, seed=1)
    q, k, v = (
        p(z).view(2, -1, 2, 4).transpose(1, 2)
        for p, z in zip((attention.q_proj, attention.k_proj, attention.v_proj), (x, m, m), strict=True)
    )
    y = torch.softmax(q @ k.mT / 2, -1) @ v
    torch.testing.assert_close(attention(x, m), attention.out_proj(y.transpose(1, 2).reshape(2, 5, 8)))


def test_bidirectional_joins_both_directions():
    block = Bidirectional(micro().model)
    initialise(block, 0)
    x = noise(2, 9, 8)
    n = block.norm(x)
    both = torch.cat([block.forwards(n), block.backwards(n.flip(1)).flip(1)], -1)
    torch.testing.assert_close(block(x), x + both @ block.proj.weight.T + block.proj.bias)


def test_an_odd_frame_is_dropped_and_replaced_by_zeros():
    down, up = Downsample(micro().model), Upsample(micro().model)
    for module in (down, up):
        initialise(module, 0)
    x = noise(1, 2, 7, 8)
    half = down(x)
    assert half.shape == (1, 2, 3, 8)
    back = up(half, 7)
    assert back.shape == x.shape
    assert (back[:, :, 6] == 0).all()
    assert (back[:, :, 5] != 0).any()


@pytest.mark.parametrize(("frames", "tokens"), [(259, 64), (7, 7), (160, 64), (40, 64), (5, 1)])
def test_pooling_is_adaptive_average_pooling(frames, tokens):
    x = noise(3, frames)
    expected = torch.nn.functional.adaptive_avg_pool1d(x, tokens)
    torch.testing.assert_close(x @ torch.from_numpy(pooling.pool_matrix(frames, tokens).copy()).T, expected)


def test_reference_summary_reads_the_concatenation():
    m = pooling.summary_matrix("reference", (64, 48, 32, 16), 259)
    assert np.allclose(m[0, :3], 0.2)  # missing tokens count as zero
    assert m[0].sum() == pytest.approx(0.6)
    # The first 40 % of the frames read only level 1, the last tenth only the bottleneck.
    assert (m[:100, 64:] == 0).all()
    assert (m[-22:, :144] == 0).all()
    centre = [round(t * 159 / 258) for t in range(259)]
    assert [int(np.flatnonzero(row).mean() + 0.5) for row in m[10:-10]] == centre[10:-10]


def test_aligned_summary_reads_the_frames_own_time():
    m = pooling.summary_matrix("aligned", (64, 0, 32, 16), 259)
    assert m.shape == (259, 112)
    assert np.allclose(m.sum(1), 1)
    time = np.concatenate([np.linspace(0, 1, k) for k in (64, 32, 16)])
    # Away from the edges, the mean time of the tokens read by a frame is the time of the frame.
    assert np.abs(m @ time - np.linspace(0, 1, 259))[40:-40].max() < 0.02


def test_halves_round_to_even():
    assert [pooling._round_half_even(n, 2) for n in (0, 1, 2, 3, 5, 7)] == [0, 0, 1, 2, 2, 4]
    assert pooling._round_half_even(5, 0) == 0


@pytest.mark.parametrize("alignment", ["aligned", "reference"])
def test_memory_attention_agrees_with_the_definition_of_its_alignment(alignment):
    model = micro(memory_alignment=alignment).model
    block = MemoryAttention(model)
    initialise(block, 0)
    x, memory = noise(2, 18, 33, 8), noise(2, 18, 80, 8, seed=1)
    keys = memory
    if alignment == "reference":
        keys = torch.nn.functional.adaptive_avg_pool1d(memory.reshape(36, 80, 8).mT, 64).mT.reshape(2, 18, 64, 8)
    expected = torch.stack(
        [torch.stack([block.time(x[b, k][None], keys[b, k][None])[0] for k in range(18)]) for b in range(2)]
    )
    summary = torch.from_numpy(pooling.summary_matrix(alignment, model.memory_tokens, 33).copy())
    for b in range(2):
        for t in range(33):
            frame = (summary[t, :, None] * memory[b]).sum(1)
            expected[b, :, t] = block.band(expected[b, None, :, t], frame[None])[0]
    torch.testing.assert_close(block(x, memory), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [(0, 0, 0, 0), (0, 0, 0, 16), (128, 96, 64, 32)])
@pytest.mark.parametrize("alignment", ["aligned", "reference"])
def test_any_number_of_memory_tokens(tokens, alignment):
    model = separator(micro(memory_tokens=tokens, memory_alignment=alignment))
    assert any("memory" in name for name in named_parameters(model)) == any(tokens)
    assert model(noise(1, 2, 8000)).isfinite().all()


def test_mid_side_keeps_a_mono_signal_mono():
    model = separator(micro(mid_side=True))
    x = noise(1, 2, 6000)
    mono = x[:, :1].expand(1, 2, 6000)
    y = model(mono)
    torch.testing.assert_close(y[:, :, 0], y[:, :, 1])  # S = 0 stays 0
    plain = separator(micro(mid_side=False))
    assert (plain(mono)[:, :, 0] - plain(mono)[:, :, 1]).abs().max() > 1e-4


def test_stems_and_residual():
    model = separator(micro(targets=["vocals", "drums"], residual=True))
    x = noise(1, 2, 6000)
    y = model(x)
    assert model.stems == ("vocals", "drums", "residual")
    torch.testing.assert_close(y.sum(1), x)
    assert separator(micro(residual=True)).stems == ("instrumental", "vocals")


@pytest.mark.parametrize("kind", ["mamba", "transformer"])
def test_every_parameter_has_a_gradient_which_rematerialisation_does_not_change(kind):
    grads = []
    for stages in ([], list(config.STAGES)):
        chosen = micro().override({"model": {"mixer": {"kind": kind}}, "training": {"rematerialise": stages}})
        model = separator(chosen)
        (model(noise(1, 2, 40_000)) ** 2).sum().backward()
        grads.append({name: w.grad for name, w in named_parameters(model).items()})
    assert all(g is not None and g.abs().max() > 0 for g in grads[0].values())
    for name, g in grads[0].items():
        torch.testing.assert_close(grads[1][name], g, msg=name)


def test_bfloat16_is_close_to_float32():
    model, x = separator(micro()), noise(1, 2, 7000)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.float32
    error = (y - model(x)).norm() / model(x).norm()
    assert 0 < error < 0.05


def test_initial_weights_depend_only_on_seed_and_name():
    a, b, other = (named_parameters(separator(micro(), seed)) for seed in (0, 0, 1))
    without = named_parameters(separator(micro(memory_tokens=(0, 0, 0, 0))))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["mask_head.weight2"], other["mask_head.weight2"])
    assert all(torch.equal(a[name], without[name]) for name in without)


def test_initial_distributions():
    weights = {n: w.detach() for n, w in named_parameters(separator(preset("tiny"))).items()}
    mamba = "enc1.0.dual_path.time.forwards."
    assert torch.allclose(weights[mamba + "A_log"], torch.log(torch.arange(1.0, 9.0)).expand(32, 8))
    delta = torch.nn.functional.softplus(weights[mamba + "dt_proj.bias"])
    assert 1e-4 <= delta.min() < 5e-3
    assert 0.03 < delta.max() <= 0.1 + 1e-6
    assert weights[mamba + "in_proj.weight"].abs().max() == pytest.approx(16**-0.5, rel=0.01)
    assert weights["band_split.embedding"].std() == pytest.approx(0.02, rel=0.1)
    lo, hi = preset("tiny").model.band_table[71]
    assert weights["band_split.weight"][:, 8 * lo : 8 * hi].abs().max() == pytest.approx(
        (8 * (hi - lo)) ** -0.5, rel=0.01
    )


def test_weight_decay_applies_only_to_matrices():
    without_decay = {name for name, w in named_parameters(separator(preset("tiny"))).items() if not w.decay}
    assert {name.rsplit(".", 1)[-1] for name in without_decay if "norm" not in name} == {
        "bias",
        "bias1",
        "bias2",
        "A_log",
        "D",
        "embedding",
    }
    assert all(
        w.decay != (name in without_decay) and (w.ndim > 1 or name in without_decay)
        for name, w in named_parameters(separator(preset("tiny"))).items()
    )


def test_rope_rotates_by_position():
    from torch_impl.mixers.transformer import rotate

    x = noise(1, 1, 6, 8)
    y = rotate(x, 10_000.0)
    torch.testing.assert_close(y[0, 0, 0], x[0, 0, 0])
    pairs = torch.complex(x[0, 0, :, :4], x[0, 0, :, 4:])
    angle = torch.arange(6.0)[:, None] * 10_000 ** (-torch.arange(4.0) / 4)
    rotated = pairs * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(y[0, 0], torch.cat([rotated.real, rotated.imag], -1))


def test_load_accepts_a_preset_and_rejects_an_unknown_name():
    model = load("tiny", seed=1)
    assert model.stems == ("instrumental",)
    assert model.parameter_count == 301_044
    assert not model.training
    with pytest.raises(InputError, match="neither a checkpoint nor one of the presets"):
        load("no-such-thing")
    with pytest.raises(InputError, match="cannot be used here"):
        load("tiny", device="nonsense")
