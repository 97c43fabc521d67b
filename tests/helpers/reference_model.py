"""An independent implementation of the reference model, with its state-dict keys: an oracle for `twinsep convert`.

Plain PyTorch, band by band and frame by frame, without code of the twins or of the reference. Symbols: b batch,
k bands, t frames, d width, e inner width, n states.
"""

import math
from collections import OrderedDict
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

TOKENS = (64, 48, 32, 16)
RANGES = ((0, 2), (80, 12), (250, 12), (500, 20), (2000, 12), (4000, 8), (8000, 6))  # lower edge in Hz, bands
N_FFT, RATE = 2048, 44_100
Norm = partial(nn.RMSNorm, eps=1e-6)


def band_edges():
    """Return [(lo, hi)] in bins, without empty bands; the last band ends below the Nyquist bin."""
    starts = [int(hz * N_FFT / RATE) for hz, _ in RANGES] + [int(RATE // 2 * N_FFT / RATE)]
    edges = []
    for (_, bands), (lo, hi) in zip(RANGES, pairwise(starts), strict=True):
        inner = [lo + math.floor(i * (hi - lo) / bands) for i in range(bands)] + [hi]
        edges += [(a, b) for a, b in pairwise(inner) if a < b]
    return edges


def each_band(function, *inputs):
    """Apply ``function`` to each band of (b, k, t, d) separately."""
    return torch.stack([function(*bands) for bands in zip(*(x.unbind(1) for x in inputs), strict=True)], 1)


class FeedForward(nn.Module):
    """SwiGLU with a residual connection."""

    def __init__(self, d):
        super().__init__()
        h = d * 4 * 2 // 3
        self.norm = Norm(d)
        self.w1, self.w2, self.w3 = (nn.Linear(i, o, bias=False) for i, o in ((d, h), (d, h), (h, d)))

    def forward(self, x):
        n = self.norm(x)
        return x + self.w3(self.w1(n) * F.silu(self.w2(n)))


class Mamba(nn.Module):
    """Mamba, frame by frame: (b, t, d) -> (b, t, d)."""

    def __init__(self, d, n):
        super().__init__()
        e, self.n, self.r = 2 * d, n, math.ceil(d / 16)
        self.in_proj = nn.Linear(d, 2 * e, bias=False)
        self.conv1d = nn.Conv1d(e, e, 4, groups=e, padding=3)
        self.x_proj = nn.Linear(e, self.r + 2 * n, bias=False)
        self.dt_proj = nn.Linear(self.r, e)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, n + 1)).repeat(e, 1))
        self.D = nn.Parameter(torch.ones(e))
        self.out_proj = nn.Linear(e, d, bias=False)

    def forward(self, x):
        u, z = self.in_proj(x).chunk(2, -1)
        u = F.silu(self.conv1d(u.mT)[..., : x.shape[1]].mT)
        dt, B, C = self.x_proj(u).split([self.r, self.n, self.n], -1)
        delta, A = F.softplus(self.dt_proj(dt)), -torch.exp(self.A_log)
        h, ys = 0, []
        for t in range(x.shape[1]):
            h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
            ys.append((h * C[:, t, None]).sum(-1) + self.D * u[:, t])
        return self.out_proj(torch.stack(ys, 1) * F.silu(z))


class BothWays(nn.Module):
    """One Mamba in each direction, with a residual connection."""

    def __init__(self, d, n):
        super().__init__()
        self.norm = Norm(d)
        self.mamba_fwd, self.mamba_bwd = Mamba(d, n), Mamba(d, n)
        self.proj = nn.Linear(2 * d, d)

    def forward(self, x):
        y = self.norm(x)
        return x + self.proj(torch.cat([self.mamba_fwd(y), self.mamba_bwd(y.flip(1)).flip(1)], -1))


class DualPath(nn.Module):
    """Bidirectional Mamba along time, then along bands, then SwiGLU: (b, k, t, d) -> (b, k, t, d)."""

    def __init__(self, d, n):
        super().__init__()
        self.intra_mamba, self.inter_mamba, self.ff = BothWays(d, n), BothWays(d, n), FeedForward(d)

    def forward(self, x):
        b, k, t, d = x.shape  # all bands and frames at once: separately, the test would take a minute
        x = self.intra_mamba(x.reshape(b * k, t, d)).view(b, k, t, d).transpose(1, 2)
        x = self.inter_mamba(x.reshape(b * t, k, d)).view(b, t, k, d).transpose(1, 2)
        return self.ff(x)


class LocalConv(nn.Module):
    """Depthwise convolution over seven frames, with a residual connection."""

    def __init__(self, d):
        super().__init__()
        self.norm = Norm(d)
        self.dwconv = nn.Conv1d(d, d, 7, groups=d, padding=3)
        self.pwconv = nn.Linear(d, d)

    def forward(self, x):
        return x + each_band(lambda y: self.pwconv(F.silu(self.dwconv(self.norm(y).mT).mT)), x)


def encoder(d, n, local):
    """Build an encoder block, with a convolution if ``local``."""
    blocks = {"conv": LocalConv(d)} if local else {}
    return nn.Sequential(OrderedDict(blocks, dual_path=DualPath(d, n)))


class Resample(nn.Module):
    """RMSNorm and a convolution of stride 2, or its transpose, fitted to ``frames``."""

    def __init__(self, d, convolution):
        super().__init__()
        self.conv, self.norm = convolution(d, d, 2, stride=2), Norm(d)

    def forward(self, x, frames=None):
        y = each_band(lambda y: self.conv(self.norm(y).mT).mT, x)
        return y if frames is None else F.pad(y, (0, 0, 0, frames - y.shape[2]))


class Attention(nn.Module):
    """Multi-head attention from x to m."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x, m):
        q, k, v = (y.chunk(self.heads, -1) for y in (self.q_proj(x), self.k_proj(m), self.v_proj(m)))
        heads = zip(q, k, v, strict=True)
        out = [torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v for q, k, v in heads]
        return self.out_proj(torch.cat(out, -1))


class GlobalAttention(nn.Module):
    """Self-attention over all bands and frames, then SwiGLU."""

    def __init__(self, d, heads):
        super().__init__()
        self.norm, self.self_attn, self.ff = Norm(d), Attention(d, heads), FeedForward(d)

    def forward(self, x):
        n = self.norm(x).flatten(1, 2)
        return self.ff(x + self.self_attn(n, n).view(x.shape))


class Cross(nn.Module):
    """Cross-attention to the memory, with a residual connection."""

    def __init__(self, d, heads):
        super().__init__()
        self.norm_q, self.norm_kv, self.cross_attn = Norm(d), Norm(d), Attention(d, heads)

    def forward(self, x, memory):
        return x + self.cross_attn(self.norm_q(x), self.norm_kv(memory))


class TimeThenBands(nn.Module):
    """Cross-attention along time in each band, then along bands in each frame."""

    def __init__(self, d, heads):
        super().__init__()
        self.intra_cross_attn, self.inter_cross_attn = Cross(d, heads), Cross(d, heads)

    def forward(self, x, memory):
        m, frames = memory.shape[2], x.shape[2]
        x = each_band(lambda y, z: self.intra_cross_attn(y, F.adaptive_avg_pool1d(z.mT, 64).mT), x, memory)
        centres = [round(t * (m - 1) / (frames - 1)) if frames > 1 else 0 for t in range(frames)]
        near = [sum(memory[:, :, i] for i in range(c - 2, c + 3) if 0 <= i < m) / 5 for c in centres]
        return torch.stack([self.inter_cross_attn(x[:, :, t], near[t]) for t in range(frames)], 2)


class SkipFusion(nn.Module):
    """Gated skip connection."""

    def __init__(self, d):
        super().__init__()
        self.norm_x, self.norm_skip = Norm(d), Norm(d)
        self.gate = nn.Sequential(nn.Linear(2 * d, d, bias=False), nn.Sigmoid())
        self.proj = nn.Linear(d, d, bias=False)

    def forward(self, x, skip):
        s = self.norm_skip(skip)
        return x + self.gate(torch.cat([self.norm_x(x), s], -1)) * self.proj(s)


class Decoder(nn.Module):
    """Cross-attention to the memory, gated skip connection, SwiGLU."""

    def __init__(self, d, heads):
        super().__init__()
        self.cross_attn, self.skip_fusion, self.ff = TimeThenBands(d, heads), SkipFusion(d), FeedForward(d)

    def forward(self, x, memory, skip):
        return self.ff(self.skip_fusion(self.cross_attn(x, memory), skip))


class Reference(nn.Module):
    """Mixture (b, 2, s) -> instrumental (b, 2, s)."""

    def __init__(self, *, d=64, heads=4, n=16, enc=1, bottleneck=2, dec=1, hop=256, mid_side=False):
        super().__init__()
        self.hop, self.mid_side, self.edges = hop, mid_side, band_edges()
        self.band_split, self.band_merge = nn.Module(), nn.Module()
        self.band_split.band_pos = nn.Parameter(0.02 * torch.randn(1, len(self.edges), 1, d))
        reals = [4 * (hi - lo) for lo, hi in self.edges]
        self.band_split.band_embeds = nn.ModuleList(nn.Sequential(nn.Linear(r, d), Norm(d)) for r in reals)
        self.band_merge.band_projections = nn.ModuleList(
            nn.Sequential(Norm(d), nn.Linear(d, d), nn.SiLU(), nn.Linear(d, r)) for r in reals
        )
        for level in (1, 2, 3):
            setattr(self, f"enc{level}", nn.ModuleList(encoder(d, n, level < 3) for _ in range(enc)))
            setattr(self, f"down{level}", Resample(d, nn.Conv1d))
            setattr(self, f"up{level}", Resample(d, nn.ConvTranspose1d))
            setattr(self, f"dec{level}", nn.ModuleList(Decoder(d, heads) for _ in range(dec)))
        self.bottleneck_mamba = nn.ModuleList(DualPath(d, n) for _ in range(bottleneck // 2))
        self.bottleneck_attn = nn.ModuleList(GlobalAttention(d, heads) for _ in range(bottleneck // 2))

    def forward(self, mixture):
        left, right = mixture.unbind(1)
        first, second = ((left + right) / 2, (left - right) / 2) if self.mid_side else (left, right)
        window = torch.hann_window(N_FFT, dtype=mixture.dtype)
        grid = {"n_fft": N_FFT, "hop_length": self.hop, "window": window}
        spectra = [torch.stft(x, **grid, return_complex=True) for x in (first, second)]
        masks = self.masks(self.network(self.features(*spectra)))
        masked = [x * mask for x, mask in zip(spectra, masks, strict=True)]
        first, second = (torch.istft(y, **grid, length=mixture.shape[-1]) for y in masked)
        return torch.stack([first + second, first - second] if self.mid_side else [first, second], 1)

    def features(self, first, second):
        """Spectra of both channels, (b, f, t) each, to features (b, k, t, d)."""
        x = torch.stack([first.real, first.imag, second.real, second.imag], -1)  # (b, f, t, 4)
        bands = zip(self.edges, self.band_split.band_embeds, strict=True)
        x = [embed(x[:, lo:hi].transpose(1, 2).flatten(2)) for (lo, hi), embed in bands]
        return torch.stack(x, 1) + self.band_split.band_pos

    def network(self, x):
        """U-Net: features (b, k, t, d) to features (b, k, t, d)."""
        skips = []
        for level in (1, 2, 3):
            skips.append(nn.Sequential(*getattr(self, f"enc{level}"))(x))
            x = getattr(self, f"down{level}")(skips[-1])
        for mamba, attention in zip(self.bottleneck_mamba, self.bottleneck_attn, strict=True):
            x = attention(mamba(x))
        levels = zip([*skips, x], TOKENS, strict=True)
        pooled = [each_band(lambda z, k=k: F.adaptive_avg_pool1d(z.mT, k).mT, y) for y, k in levels]
        memory = torch.cat(pooled, 2)
        for level in (3, 2, 1):
            x = getattr(self, f"up{level}")(x, skips[level - 1].shape[2])
            for block in getattr(self, f"dec{level}"):
                x = block(x, memory, skips[level - 1])
        return x

    def masks(self, x):
        """Features (b, k, t, d) to one complex mask (b, f, t) per channel."""
        logits = x.new_zeros(len(x), N_FFT // 2 + 1, x.shape[2], 4)
        for k, (lo, hi) in enumerate(self.edges):
            logits[:, lo:hi] = self.band_merge.band_projections[k](x[:, k]).unflatten(-1, (-1, 4)).transpose(1, 2)
        magnitudes, phases = torch.sigmoid(logits[..., 0::2]), math.pi * torch.tanh(logits[..., 1::2])
        return torch.polar(magnitudes, phases).unbind(-1)
