"""Weights, clips and files that the peers' run and the suite make alike, from names: no weights have to be kept."""

import io
import math
import pickle
import zlib

import numpy as np
import torch


def seeded_tensor(name: str, shape: tuple[int, ...], theta: float = 1.0) -> torch.Tensor:
    """A float32 tensor for the parameter or statistic `name`, the same everywhere, and large enough to matter.

    `theta` shrinks theta's: the dot form is a cube of its input, and five of them in a row would overflow.
    """
    draw = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
    if name.endswith(("running_var", "_riv")):
        values = draw.uniform(0.5, 1.5, shape)
    elif len(shape) == 1 and name.endswith(("weight", "_s")):
        values = draw.uniform(0.3, 0.9, shape)
    elif len(shape) == 1:
        values = draw.uniform(-0.2, 0.2, shape)
    else:
        values = draw.standard_normal(shape, np.float32) * math.sqrt(2 / math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, np.float32)) * (theta if "theta" in name else 1)


def clip_of(frames: int, size: int) -> torch.Tensor:
    """Two moving clips `(2, 3, frames, size, size)` of noise."""
    draw = np.random.Generator(np.random.Philox(7))
    return torch.from_numpy(draw.standard_normal((2, 3, frames, size, size), np.float32))


def python2_pickle(data: object) -> bytes:
    """Protocol 2 as python 2 writes it: bytes of arrays are strings (BINSTRING), which python 3 does not write."""

    class Python2(pickle._Pickler):
        def save_bytes(self, raw):
            self.write(pickle.BINSTRING + len(raw).to_bytes(4, "little") + raw)
            self.memoize(raw)

        dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}

    out = io.BytesIO()
    Python2(out, 2).dump(data)
    return out.getvalue().replace(b"numpy._core", b"numpy.core")
