"""Songs with known stems, made from nothing but a seed: the data set that anybody can rebuild.

``song.song(seed, seconds)`` composes, plays and sings one song; ``dataset.write_default`` fills a folder with
them in the layout of MUSDB18-HQ. Needs the ``data`` extra (a soundfont, a speech synthesiser and a vocoder, all
from wheels); nothing here is imported by the rest of twinsep until data are asked for.
"""
