"""Attention for dense features: the authors' numbers, the equation as loops, and its properties."""

import math

import pytest
import torch

from tests.golden import close, tensors
from zeroshot.errors import UserError
from zeroshot.methods import Dense, configure
from zeroshot.methods._attention import gaussian_neighbourhood, weights
from zeroshot.methods.naclip import NACLIP
from zeroshot.methods.sclip import SCLIP

MODES = ("naclip", "kk", "qq", "csa", "value", "vanilla")


def block_output(z, method, grid):
    """The recorded projections around a method's attention: heads joined, output projected."""
    gathered = method.attend(z["in_q"], z["in_k"], z["in_v"], grid)
    heads = gathered.permute(2, 0, 1, 3).flatten(2)  # [s, b, w]
    return heads, heads @ z["in_out_proj_weight"].T + z["in_out_proj_bias"]


@pytest.mark.parametrize("mode", ["naclip", "kk", "csa", "vanilla"])
def test_naclip_is_the_authors(mode):
    z = tensors("naclip_a")
    grid, std = tuple(z["hp_grid"].tolist()), float(z["hp_gaussian_std"])
    near = gaussian_neighbourhood(grid, std, like=z["in_q"])
    close(near, z["out_gaussian_addition"])
    close(weights(z["in_q"], z["in_k"], mode, near), z[f"out_attn_{mode}"])
    heads, output = block_output(z, NACLIP(attention=mode, std=std), grid)
    close(heads, z[f"out_heads_{mode}"])
    close(output, z[f"out_output_{mode}"])


def test_sclip_is_the_authors():
    z = tensors("sclip_a")
    heads, output = block_output(z, SCLIP(), (4, 5))
    close(heads, z["out_heads_csa"])
    close(output, z["out_output_csa"])


def loops(q, k, v, mode, grid, std):
    """The equation, one number at a time."""
    h, s, d = q.shape
    columns = grid[1]
    out = torch.zeros_like(v)

    def softmax(logits):
        top = max(logits)
        powers = [math.exp(x - top) for x in logits]
        return [p / sum(powers) for p in powers]

    def dot(a, b):
        return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / math.sqrt(d)

    def near(i, j):
        if i == 0 or j == 0:
            return 0.0
        down = (i - 1) // columns - (j - 1) // columns
        across = (i - 1) % columns - (j - 1) % columns
        return math.exp(-(down**2 + across**2) / (2 * std**2))

    def row(head, i):
        kk = [dot(k[head, i], k[head, j]) for j in range(s)]
        qq = [dot(q[head, i], q[head, j]) for j in range(s)]
        if mode == "vanilla":
            return softmax([dot(q[head, i], k[head, j]) for j in range(s)])
        if mode == "value":
            return [float(i == j) for j in range(s)]
        if mode == "csa":
            return [a + b for a, b in zip(softmax(kk), softmax(qq), strict=True)]
        if mode == "naclip":
            return softmax([x + near(i, j) for j, x in enumerate(kk)])
        return softmax(kk if mode == "kk" else qq)

    for head in range(h):
        for i in range(s):
            for j, w in enumerate(row(head, i)):
                out[head, i] += w * v[head, j]
    return out


@pytest.mark.parametrize("mode", MODES)
def test_attention_is_its_equation(mode):
    torch.manual_seed(3)
    grid, std = (2, 3), 1.3
    q, k, v = (2 * torch.randn(1, 2, 7, 4, dtype=torch.float64) for _ in range(3))
    ours = NACLIP(attention=mode, std=std).attend(q, k, v, grid)[0]
    torch.testing.assert_close(ours, loops(q[0], k[0], v[0], mode, grid, std))


def test_neighbours_by_hand():
    """One row of three patches behind a class token: distances 0, 1, 2."""
    one, two = math.exp(-0.5), math.exp(-2.0)
    expected = [[0, 0, 0, 0], [0, 1, one, two], [0, one, 1, one], [0, two, one, 1]]
    torch.testing.assert_close(gaussian_neighbourhood((1, 3), 1.0), torch.tensor(expected))


def test_without_a_class_token_patches_are_all_there_is():
    near = gaussian_neighbourhood((2, 2), 1.0, before=0)
    assert near.shape == (4, 4)
    assert float(near[0, 3]) == pytest.approx(math.exp(-1.0))


def test_a_wide_gaussian_is_none():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 7, 4) for _ in range(3))
    wide = NACLIP(std=1e6).attend(q, k, v, (2, 3))[:, :, 1:]
    kk = k @ k.mT / 2
    kk[:, :, 1:, 1:] += 1  # patches all alike near; the class token is not
    torch.testing.assert_close(wide, (kk.softmax(-1) @ v)[:, :, 1:])


def test_options():
    assert configure("naclip", {"std": "2", "attention": "kk"}) == NACLIP(attention="kk", std=2.0)
    assert isinstance(NACLIP(), Dense)
    assert isinstance(SCLIP(), Dense)
    assert not NACLIP().whole_block
    assert NACLIP(block="whole").whole_block
    with pytest.raises(UserError, match="greater than 0"):
        NACLIP(std=0.0)
    with pytest.raises(UserError, match="possible: naclip, kk"):
        configure("naclip", {"attention": "kq"})
