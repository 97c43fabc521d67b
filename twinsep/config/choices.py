"""The fixed choices that configurations and the command line share, each defined once."""

from __future__ import annotations

from typing import Literal, get_args

Framework = Literal["torch", "jax"]
FRAMEWORKS: tuple[Framework, ...] = get_args(Framework)

#: Type of the network's matrix products; norms, scan states and the STFT stay float32, the losses float64.
Precision = Literal["float32", "bfloat16", "float16"]

#: Samples beyond full scale: clamp them, rescale all stems by one factor, or refuse the song.
ClipMode = Literal["clamp", "rescale", "none"]
CLIP_MODES: tuple[ClipMode, ...] = get_args(ClipMode)

#: Raw samples in a pipe, by FFmpeg's names: 16-bit integers, 32-bit floating point.
SampleFormat = Literal["s16le", "f32le"]

#: Programs that a network can be exported to.
ExportFormat = Literal["onnx", "stablehlo", "torch"]

#: Where independent items, such as songs, are computed: in this process, or on a Ray cluster.
Executor = Literal["local", "ray"]

#: The levels of the U-Net, in the order they are computed, and the layers of a flat network.
Stage = Literal["enc1", "enc2", "enc3", "bottleneck", "dec3", "dec2", "dec1", "layers"]
STAGES: tuple[Stage, ...] = get_args(Stage)

#: The training losses; :mod:`twinsep.losses` defines each.
LOSS_NAMES = (
    "magnitude",
    "band",
    "log_magnitude",
    "si_sdr",
    "si_sdr_unclipped",
    "mr_stft",
    "spectral_sdr",
    "waveform_l1",
    "mr_stft_complex",
    "mixture_phase_l1",
    "compressed",
)

#: The sources of MUSDB18.
SOURCES = ("drums", "bass", "other", "vocals")
#: The stems a model can estimate: a source, the sum of all except the vocals, or one that only htdemucs_6s has.
STEMS = (*SOURCES, "instrumental", "guitar", "piano")
