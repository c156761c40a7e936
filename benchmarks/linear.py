"""Linear layers on one processor core: the product of torch beside `models.towers.packed_linear`.

    python benchmarks/linear.py

The layers of GPT-2 small in turn, 340 MB of weights that come from memory; its vocabulary; and
single layers that stay in the processor's caches. Outputs are compared; the least of many runs.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zeroshot.models.towers.packed_linear import SMALLEST, PackedLinear

GPT2 = [(768, 2304), (768, 768), (768, 3072), (3072, 768)] * 12
CASES = [
    ("GPT-2 small, all layers", GPT2, (1, 2, 3, 4, 8, 16)),
    ("GPT-2's vocabulary", [(768, 50257)], (1, 4)),
    ("CLIP's text tower, 512 x 2048", [(512, 2048)], (20, 78, 500)),
    ("GPT-2 small, 768 x 3072", [(768, 3072)], (100, 1600)),
    ("MiniLM, 384 x 384", [(384, 384)], (4, 100, 500)),
    ("64 x 64", [(64, 64)], (4, 100)),
]


def least(run: Callable[[], object], repeats: int) -> float:
    """Microseconds."""
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times) * 1e6


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}; layers are packed from {SMALLEST} numbers on")
    print("| layers | rows | torch, us | stored weights, us | packed, us |\n|---|---|---|---|---|")
    for name, shapes, counts in CASES:
        plain = [nn.Linear(*shape).requires_grad_(False) for shape in shapes]
        stored = [PackedLinear(layer, shared=True) for layer in plain]
        packed = [PackedLinear(copy.deepcopy(layer)) for layer in plain]
        for rows in counts:
            given = [torch.randn(rows, layer.in_features) for layer in plain]

            def run(layers: list[nn.Module], given: list[Tensor] = given) -> list[Tensor]:
                return [layer(x) for layer, x in zip(layers, given, strict=True)]

            expected = run(plain)
            for layers in (stored, packed):
                apart = max(
                    float((a - b).abs().max()) for a, b in zip(run(layers), expected, strict=True)
                )
                if apart > 1e-4:
                    sys.exit(f"{name}, {rows} rows: DIFFERENT by {apart}")
            took = [least(lambda: run(layers), repeats) for layers in (plain, stored, packed)]  # noqa: B023
            print(f"| {name} | {rows} | " + " | ".join(f"{t:.0f}" for t in took) + " |")


if __name__ == "__main__":
    main()
