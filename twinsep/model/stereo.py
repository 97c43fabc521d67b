"""The mid/side transform as a constant matrix."""

import numpy as np

#: (L, R) to (M, S) = ((L+R)/2, (L−R)/2). Twice this matrix is its inverse: L = M + S, R = M − S.
MID_SIDE = np.array([[0.5, 0.5], [0.5, -0.5]], np.float32)
