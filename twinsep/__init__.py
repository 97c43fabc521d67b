"""twinsep: a band-split Mamba U-Net that removes vocals from music, twice (PyTorch and JAX)."""

from typing import NamedTuple


class Symbol(NamedTuple):
    """A symbol of the paper: its letter as an axis in shapes, and what it stands for."""

    axis: str
    meaning: str


#: The symbols that code, docstrings and paper share.
GLOSSARY: dict[str, Symbol] = {
    "B": Symbol("b", "batch"),
    "C": Symbol("c", "audio channels, 2"),
    "S": Symbol("s", "samples"),
    "F": Symbol("f", "STFT bins, 1,025"),
    "T": Symbol("t", "STFT frames"),
    "K": Symbol("k", "bands, 72"),
    "D": Symbol("d", "model width"),
    "E": Symbol("e", "inner width of Mamba, 2·D"),
    "N": Symbol("n", "state size"),
    "Δ": Symbol("", "step of the state space model, after softplus"),
}
