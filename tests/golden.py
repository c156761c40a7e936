"""What the authors' own code returned, recorded in tests/data/classify and methods_2026."""

from pathlib import Path

import numpy as np
import torch

FOLDERS = [Path(__file__).parent / "data" / name for name in ("classify", "methods_2026")]


def recorded(name):
    """Arrays by name (`in_`, `hp_`, `out_`), as numpy."""
    [file] = [f / f"{name}.npz" for f in FOLDERS if (f / f"{name}.npz").is_file()]
    with np.load(file, allow_pickle=False) as z:
        return {key: z[key] for key in z.files if key != "meta"}


def tensors(name):
    """The same as tensors."""
    numbers = {k: v for k, v in recorded(name).items() if v.dtype.kind != "U"}
    return {key: torch.from_numpy(value) for key, value in numbers.items()}


def close(ours, theirs, rtol=1e-9):
    """Equal within `rtol`, and within as much of the largest value where it is near zero."""
    ours, theirs = (np.asarray(x, dtype=np.float64) for x in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())
