"""Songs made of real recordings: instrumentals and voices from free packages, mixed as records are.

``catalogue`` describes the packages and their files, ``packages`` fetches and unpacks them, ``scan`` finds the passages
of instrumentals without voice. ``speech`` takes spoken phrases apart and ``singing`` sings them; ``production`` does
what a mixing desk, a mastering studio and a codec do. ``song`` makes one song from a seed, ``generate`` a data set of
them. Singing needs the ``data`` extra, scanning the ``systems`` extra.
"""
