"""Generated songs with known stems, made from a seed alone: a data set that anybody can rebuild.

``song.song(seed, seconds)`` composes, plays and sings one song; ``generate.generate_dataset`` fills a folder with songs
in the layout of MUSDB18-HQ. Both need the ``data`` extra: a soundfont, a speech synthesiser and a vocoder, all from
wheels. The rest of twinsep imports this package only when songs are generated.
"""
