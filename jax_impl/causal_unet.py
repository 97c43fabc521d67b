"""The U-Net for live signals: no frame reads a later one, and one frame can be computed after another."""

from __future__ import annotations

from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Complex, Float

from jax_impl.causal import (
    CausalDecoderBlock,
    CausalDualPath,
    CausalEncoderBlock,
    CausalGlobalAttention,
    MemoryState,
    delayed,
    memory_at,
    memory_tokens,
    running_memory,
    start_memory,
    update_memory,
)
from jax_impl.devices import stream_on_numpy
from jax_impl.ops import choose, concatenate, constant, flag, negate, pad_axis, stack, zeros
from jax_impl.unet import BandSplitUNet
from twinsep.config import Config, UNetConfig
from twinsep.model.running_memory import rates
from twinsep.model.stereo import mid_side
from twinsep.model.stream import Stream
from twinsep.stft import causal_envelope, causal_istft, causal_stft, frame_spectra, windowed_frames

#: Frames of level 1 in a frame of levels 1, 2, 3 and of the bottleneck.
STRIDES = (1, 2, 4, 8)


class DeepestState(NamedTuple):
    """The deepest level between two of its frames: the states of its blocks, and its part of the memory."""

    blocks: tuple[Any, ...]
    memory: MemoryState | None


class LevelState(NamedTuple):
    """Another level between two of its frames."""

    blocks: tuple[Any, ...]  # states of the encoder's blocks
    memory: MemoryState | None
    held: Array  # the last frame (b, k, d), the first of a pair if ``odd``
    upsampled: Array  # what comes up for the next frame unless it completes a pair, (b, k, d)
    odd: Any  # true if the next frame completes a pair
    deeper: LevelState | DeepestState


class StreamState(NamedTuple):
    """A stream between two blocks of ``hop`` samples; o = n_fft − hop."""

    samples: Array  # the last samples of the mixture (b, 2, o)
    overlap: Array  # the sum of windowed frames for the next samples of the stems (b, targets, 2, o)
    levels: LevelState | DeepestState | None  # of the U-Net


class CausalBandSplitUNet(BandSplitUNet):
    """The band-split U-Net in which no output reads a sample later than one window after it.

    Frame t ends with sample (t + 1) · hop − 1 (:func:`twinsep.stft.causal_stft`). Over time every mixer has one
    direction, every convolution reads the past, attention a window of it. A pair of frames goes to the next level when
    its second one has come, and what comes up from there is read from that frame on: the deeper levels are late, the
    skip connections are not. The memory of a decoder's frame is a running summary of the past
    (:mod:`twinsep.model.running_memory`): the tokens of every level's last complete frame.
    """

    encoder_block = CausalEncoderBlock
    dual_path = CausalDualPath
    global_attention = CausalGlobalAttention
    decoder_block = CausalDecoderBlock

    def __init__(self, config: Config):
        super().__init__(config)
        model = config.model
        assert isinstance(model, UNetConfig)
        frame = model.hop / model.sample_rate  # s
        tokens = zip(model.memory_tokens, STRIDES, strict=True)
        self.rates = tuple(rates(n, stride * frame) for n, stride in tokens)

    def spectrum(self, x: Float[Array, "b 2 s"]) -> Complex[Array, "b 2 f t"]:
        """Transform a signal to a spectrum whose frames read no later sample."""
        return causal_stft(x, n_fft=self.model.n_fft, hop=self.model.hop)

    def signal(self, spectra: Complex[Array, "b stems 2 f t"], samples: int) -> Float[Array, "b stems 2 s"]:
        """Transform spectra to signals of ``samples``."""
        return causal_istft(spectra, n_fft=self.model.n_fft, hop=self.model.hop, length=samples)

    def network(self, x: Float[Array, "b k t d"]) -> Float[Array, "b k t d"]:
        """Apply the U-Net to band features, or as much of it as ``model.levels`` says."""
        model = self.model
        assert isinstance(model, UNetConfig)
        if model.levels == 0:
            return x
        e1 = self.stage("enc1", x)  # (b, k, t, d)
        if model.levels == 1:
            return e1
        e2 = self.stage("enc2", self.down1(e1))  # (b, k, t/2, d)
        e3 = self.stage("enc3", self.down2(e2))  # (b, k, t/4, d)
        y = self.stage("bottleneck", self.down3(e3))  # (b, k, t/8, d)
        memory = self.memory([e1, e2, e3, y]) if model.has_memory else None
        y = self.decode(3, y, memory, e3)
        y = self.decode(2, y, memory, e2)
        return self.decode(1, y, memory, e1)

    def memory(self, levels: list[Array]) -> list[tuple[Array, int]]:
        """Tokens (b, k, t, n, d) of every level that has any, at each of its frames, and the level's stride."""
        each = zip(levels, self.rates, STRIDES, strict=True)
        return [(running_memory(x, rates), stride) for x, rates, stride in each if rates]

    def decode(
        self, level: int, y: Float[Array, "b k _ d"], memory: list[tuple[Array, int]] | None, skip: Array
    ) -> Float[Array, "b k t d"]:
        """Apply the decoder of a level to the features ``y`` of the next level, given its ``skip`` (b, k, t, d)."""
        frames = skip.shape[2]
        y = delayed(getattr(self, f"up{level}")(y, 2 * y.shape[2]), frames)
        read = None if memory is None else memory_at(memory, frames, STRIDES[level - 1])
        return self.stage(f"dec{level}", y, read, skip)

    def stream(self) -> Stream:
        """Return the stems of a live signal, from silence on, in NumPy arrays: (2, n) -> (stems, 2, m)."""
        assert isinstance(self.model, UNetConfig)
        return Stream(stream_on_numpy(self), self.model)

    # ------------------------------------------------------------------------ one frame after another

    def start(self, batch: int = 1) -> StreamState:
        """The state of a stream of ``batch`` signals before their first samples: silence."""
        model, like = self.model, self.band_split.bias[...]
        past = model.n_fft - model.hop
        samples, overlap = zeros((batch, 2, past), like), zeros((batch, len(model.targets), 2, past), like)
        assert isinstance(model, UNetConfig)
        return StreamState(samples, overlap, self.start_level(1, batch) if model.levels else None)

    def start_level(self, level: int, batch: int) -> LevelState | DeepestState:
        """The state of a level, and of those below, before their first frames; level 4 is the bottleneck."""
        model = self.model
        assert isinstance(model, UNetConfig)
        k, like = model.n_bands, self.band_split.bias[0]
        blocks = tuple(block.start(batch, k) for block in self.blocks_of(level))
        memory = start_memory(batch, k, model.memory_tokens[level - 1], like) if model.has_memory else None
        if level == 4 or model.levels == 1:
            return DeepestState(blocks, memory)
        held = zeros((batch, k, model.d_model), like)
        return LevelState(blocks, memory, held, held, flag(False), self.start_level(level + 1, batch))

    def blocks_of(self, level: int) -> Any:
        """The encoder's blocks of a level, or those of the bottleneck."""
        return self.bottleneck if level == 4 else getattr(self, f"enc{level}")

    def push(
        self, block: Float[Array, "b 2 hop"], state: StreamState
    ) -> tuple[Float[Array, "b stems 2 hop"], StreamState]:
        """Separate the next ``hop`` samples of a mixture, given the state before them.

        Returns the stems of the ``hop`` samples that begin n_fft samples before the end of the block, and the state for
        the next block. Over a whole signal these are the samples that the forward pass returns, n_fft − hop later.
        """
        model = self.model
        frame = concatenate([state.samples, block], -1)  # (b, 2, n_fft)
        x = mid_side(frame) if model.mid_side else frame
        spectrum = frame_spectra(x)[..., None]  # (b, 2, f, 1)
        features, levels = self.band_split(spectrum)[:, :, 0], state.levels
        if levels is not None:
            features, levels = self.step(1, features, levels, [])
        masked = (self.mask_head(features[:, :, None]) * spectrum[:, None])[..., 0]  # (b, targets, 2, f)
        added = windowed_frames(masked, n_fft=model.n_fft) + pad_axis(state.overlap, -1, model.hop)
        y = added[..., : model.hop] / constant(causal_envelope(model.n_fft, model.hop), added)
        y = self.to_stems(y, frame[..., : model.hop])
        return y, StreamState(frame[..., model.hop :], added[..., model.hop :], levels)

    def step(
        self, level: int, x: Float[Array, "b k d"], state: LevelState | DeepestState, shallower: list[Array]
    ) -> tuple[Float[Array, "b k d"], LevelState | DeepestState]:
        """Compute one frame of a level and, if it completes a pair, one of the level below.

        ``shallower`` are the tokens of the levels above. Returns the decoder's frame, or the bottleneck's.
        """
        blocks = []
        for block, before in zip(self.blocks_of(level), state.blocks, strict=True):
            x, after = block.step(x, before)
            blocks.append(after)
        memory, tokens = state.memory, shallower
        if memory is not None:
            memory = update_memory(x, memory, self.rates[level - 1])
            tokens = [*shallower, memory_tokens(memory)]
        if isinstance(state, DeepestState):
            return x, DeepestState(tuple(blocks), memory)

        def pair(deeper: Any) -> tuple[Array, Array, Any]:
            coarse = getattr(self, f"down{level}")(stack([state.held, x], 2))[:, :, 0]
            y, deeper = self.step(level + 1, coarse, deeper, tokens)
            now, later = (getattr(self, f"up{level}")(y[:, :, None], 2)[:, :, i] for i in (0, 1))
            return now, later, deeper

        def half(deeper: Any) -> tuple[Array, Array, Any]:
            return state.upsampled, state.upsampled, deeper

        y, later, deeper = choose(state.odd, pair, half, state.deeper)
        read = None if memory is None else concatenate([*tokens, *tokens_below(deeper)], 2)[:, :, None]
        for block in getattr(self, f"dec{level}"):
            y = block(y[:, :, None], read, x[:, :, None])[:, :, 0]
        return y, LevelState(tuple(blocks), memory, x, later, negate(state.odd), deeper)


def tokens_below(state: LevelState | DeepestState) -> list[Array]:
    """The tokens (b, k, n, d) of a level and of those below, at their last frames."""
    assert state.memory is not None
    tokens = [memory_tokens(state.memory)]
    return tokens if isinstance(state, DeepestState) else [*tokens, *tokens_below(state.deeper)]
