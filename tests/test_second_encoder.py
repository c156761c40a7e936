"""Patches compared by a second encoder: the authors' numbers, loops, properties, and `segment`."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.golden import close, tensors
from tests.test_dense_segmenter import Colours, halves
from zeroshot import cli, segment
from zeroshot.errors import UserError
from zeroshot.methods import Dense, Propagating, configure
from zeroshot.methods._neighbour_graph import steps_to
from zeroshot.methods.lposs import LPOSS, patch_graph, pixel_graph, spread
from zeroshot.methods.naclip import NACLIP
from zeroshot.methods.proxyclip import ProxyCLIP, proxy_attention
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter

ROOT = Path(__file__).parent.parent
HEART = str(ROOT / "examples" / "scenes" / "1-red-heart.png")
CLIP = f"hf:{ROOT / 'zeroshot' / 'models' / 'pocket' / 'clip'}"
TIGHT = 1e-14


@pytest.fixture(scope="module")
def proxy():
    return tensors("proxyclip_a")


@pytest.fixture(scope="module")
def lposs():
    return tensors("lposs_a")


def cosines(features):
    unit = features / features.norm(dim=-1, keepdim=True)
    return unit @ unit.mT


def test_proxy_attention_is_the_authors(proxy):
    features = proxy["in_features"].permute(0, 2, 3, 1).flatten(1, 2)
    beta, gamma = float(proxy["hp_beta"]), float(proxy["hp_gamma"])
    whole = cosines(features).mean()
    close(proxy_attention(features, beta, gamma, whole[None]), proxy["out_attention"])
    assert not np.allclose(proxy_attention(features, beta, gamma), proxy["out_attention"])


def test_proxyclip_is_the_authors(proxy):
    """Their mean is the batch's: ours, of one image, with a beta that makes up for it."""
    heads, grid = int(proxy["hp_heads"]), tuple(proxy["hp_token_size"].tolist())
    q, k, v = (proxy["in_x"] @ proxy["in_in_proj_weight"].T + proxy["in_in_proj_bias"]).chunk(3, -1)
    parts = [x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v)]
    features = proxy["in_features"].permute(0, 2, 3, 1)
    batch = cosines(features.flatten(1, 2)).mean()
    for i in range(2):
        own = features[i : i + 1]
        beta = float(proxy["hp_beta"] * batch / cosines(own.flatten(1, 2)).mean())
        method = ProxyCLIP(beta=beta, gamma=float(proxy["hp_gamma"]))
        found = method.attend(*(x[i : i + 1] for x in parts), grid, own)  # [1, h, n, d]
        tokens = found[0].transpose(0, 1).flatten(1) @ proxy["in_out_proj_weight"].T
        close(tokens + proxy["in_out_proj_bias"], proxy["out_tokens"][:, i])


def test_proxy_attention_by_hand():
    """Cosines 1 and 0.6, mean 0.8: the limit 0.4 keeps both, the limit 0.8 each patch alone."""
    features = torch.tensor([[[2.0, 0.0], [3.0, 4.0]]], dtype=torch.float64)
    near = 1 / (1 + math.exp(-2 * 0.4))
    expected = torch.tensor([[[near, 1 - near], [1 - near, near]]], dtype=torch.float64)
    torch.testing.assert_close(proxy_attention(features, 0.5, 2.0), expected)
    torch.testing.assert_close(proxy_attention(features, 1.0, 2.0)[0], torch.eye(2).double())


def test_proxyclip_of_a_blank_picture_is_a_mean():
    """Patches that are all alike: the limit is above all cosines, and theirs is NaN."""
    value = torch.arange(10.0).view(1, 1, 5, 2)
    for features in (torch.ones(1, 2, 2, 3), torch.zeros(1, 2, 2, 3)):
        found = ProxyCLIP().attend(value, value, value, (2, 2), features)
        torch.testing.assert_close(found, value[:, :, 1:].mean(2, keepdim=True).expand(1, 1, 4, 2))


def test_a_row_depends_on_its_own_image():
    torch.manual_seed(0)
    value, features = torch.randn(3, 2, 7, 4), torch.randn(3, 4, 6, 5)
    together = ProxyCLIP().attend(value, value, value, (2, 3), features)
    assert together.shape == (3, 2, 24, 4)
    for i in range(3):
        one = slice(i, i + 1)
        alone = ProxyCLIP().attend(value[one], value[one], value[one], (2, 3), features[one])
        torch.testing.assert_close(alone[0], together[i])


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (None, "--patches-by"),
        (torch.ones(2, 2, 2, 3), "expected .images, rows, columns, width."),
        (torch.ones(1, 4, 3), "expected .images, rows, columns, width."),
        (torch.ones(1, 0, 2, 3), "expected .images, rows, columns, width."),
    ],
)
def test_features_that_proxyclip_does_not_take(features, said):
    value = torch.ones(1, 1, 5, 2)
    with pytest.raises(UserError, match=said):
        ProxyCLIP().attend(value, value, value, (2, 2), features)


def places(z):
    """Corners of the patches of all windows, in pixels."""
    found = []
    for (rows, columns), (top, _, left, _) in zip(
        z["hp_height_width"].tolist(), z["in_locations"].tolist(), strict=True
    ):
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
        found.append(grid * int(z["hp_patch_size"]) + torch.tensor([top, left]))
    return torch.cat(found)


def test_lposs_is_the_authors(lposs):
    """Their k counts the patch itself."""
    numbers = (float(lposs[f"hp_{name}"]) for name in ("gamma", "sigma", "pix_dist_pow"))
    graph = patch_graph(lposs["in_features"], places(lposs), int(lposs["hp_k"]) - 1, *numbers)
    alpha, scores = float(lposs["hp_alpha"]), lposs["in_patch_scores"]
    close(torch.eye(30) - alpha * graph.to_dense(), lposs["out_laplacian"])
    close(spread(graph, scores, alpha, TIGHT), lposs["out_scores_tight"])
    close(spread(graph, scores, alpha, 1e-6, most=10), lposs["out_scores"])


def test_lposs_plus_is_the_authors(lposs):
    graph = pixel_graph(lposs["in_lab_image"], int(lposs["hp_neigh"]), float(lposs["hp_tau"]))
    alpha, scores = float(lposs["hp_alpha"]), lposs["in_pixel_scores"]
    close(spread(graph, scores, alpha, TIGHT), lposs["out_pixel_scores_tight"])
    close(spread(graph, scores, alpha, 1e-6, most=10), lposs["out_pixel_scores"])


def loops(features, positions, scores, k, gamma, sigma, alpha):
    """The equations, one number at a time, and a solution by elimination."""
    n = len(features)
    lengths = [math.sqrt(sum(x * x for x in row)) for row in features]

    def cosine(i, j):
        dot = sum(a * b for a, b in zip(features[i], features[j], strict=True))
        return dot / lengths[i] / lengths[j]

    w = np.zeros((n, n))
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: -cosine(i, j))
        for j in others[:k]:
            apart = math.dist(positions[i], positions[j])
            w[i, j] = max(0.0, cosine(i, j)) ** gamma * math.exp(-sigma * apart)
    both = w + w.T
    for i, degree in enumerate(both.sum(1)):
        both[i] /= math.sqrt(degree) or 1
    for j, degree in enumerate((w + w.T).sum(1)):
        both[:, j] /= math.sqrt(degree) or 1
    return np.linalg.solve(np.eye(n) - alpha * both, np.array(scores))


@pytest.mark.parametrize("k", [2, 99])
def test_lposs_is_its_equation(k):
    torch.manual_seed(1)
    features, scores = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    positions = torch.cartesian_prod(torch.arange(3), torch.arange(3)).double() * 8
    method = LPOSS(k=k, gamma=2.0, sigma=0.05, alpha=0.9)
    expected = loops(*(x.tolist() for x in (features, positions, scores)), k, 2.0, 0.05, 0.9)
    close(method.propagate(scores, features, positions), expected, 1e-4)


def test_lposs_by_hand():
    """Two patches that are alike and one that is like neither: S = [[0, 1], [1, 0]]."""
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    positions = torch.tensor([[0.0, 0.0], [0.0, 8.0], [8.0, 0.0]], dtype=torch.float64)
    scores = torch.tensor([[3.0], [0.0], [5.0]], dtype=torch.float64)
    found = spread(patch_graph(features, positions), scores, alpha=0.5, tolerance=TIGHT)
    torch.testing.assert_close(found, torch.tensor([[4.0], [2.0], [5.0]], dtype=torch.float64))


def test_order_of_patches_does_not_matter():
    torch.manual_seed(2)
    features, scores = torch.randn(20, 4), torch.randn(20, 3)
    positions, order = 8 * torch.rand(20, 2), torch.randperm(20)
    found = LPOSS(k=5).propagate(scores, features, positions)
    again = LPOSS(k=5).propagate(scores[order], features[order], positions[order])
    torch.testing.assert_close(again, found[order], rtol=1e-3, atol=1e-3)


def test_without_spreading_nothing_moves():
    scores = torch.randn(4, 2)
    torch.testing.assert_close(
        LPOSS(alpha=0.0).propagate(scores, torch.zeros(4, 3), torch.zeros(4, 2)), scores
    )
    torch.testing.assert_close(  # patches without edges
        spread(patch_graph(torch.zeros(4, 3), torch.zeros(4, 2)), scores), scores
    )
    alone = LPOSS().propagate(scores[:1], torch.ones(1, 3), torch.zeros(1, 2))
    torch.testing.assert_close(alone, scores[:1])


@pytest.mark.parametrize("alpha", [0.5, 0.95, 0.999])
def test_the_solver_has_steps_enough(alpha):
    """A chain, whose eigenvalues fill the whole range."""
    n = 400
    chain = torch.zeros(n, n, dtype=torch.float64)
    chain[torch.arange(n - 1), torch.arange(1, n)] = 0.5
    chain = (chain + chain.T).to_sparse()
    right = torch.zeros(n, 2, dtype=torch.float64)
    right[0, 0] = right[:, 1] = 1.0
    found = spread(chain, right, alpha, 1e-6)
    residual = right - found + alpha * torch.sparse.mm(chain, found)
    assert (residual.norm(dim=0) <= 1e-6 * right.norm(dim=0)).all()
    assert steps_to(1e-6, alpha) < 20 / math.sqrt(1 - alpha)


def test_rows_of_other_patches():
    with pytest.raises(UserError, match=r"LPOSS\.propagate"):
        LPOSS().propagate(torch.ones(3, 2), torch.ones(4, 2), torch.ones(3, 2))


def test_options():
    assert configure("lposs", {"k": "8", "attention": "kk"}) == LPOSS(k=8, attention="kk")
    assert isinstance(ProxyCLIP(), Dense)
    assert isinstance(LPOSS(), Propagating)
    assert not isinstance(NACLIP(), Propagating)
    for name, options, said in (
        ("lposs", {"alpha": 1.0}, "below 1"),
        ("lposs", {"k": 0}, "at least 1"),
        ("lposs", {"sigma": -1.0}, "at least 0"),
        ("lposs", {"gamma": math.nan}, "gamma"),
        ("lposs", {"std": 0.0}, "lposs: std"),
        ("proxyclip", {"gamma": 0.0}, "greater than 0"),
        ("proxyclip", {"beta": math.nan}, "beta"),
    ):
        with pytest.raises(UserError, match=said):
            configure(name, options)


class Fine(Colours):
    """Patches of 2 pixels, half of those of `Colours`."""

    name, patch_size = "fine", 2

    def patch_features(self, images):
        self.sizes += [image.size for image in images]
        width, height = images[0].size
        pixels = torch.stack([torch.from_numpy(np.array(i)).float() for i in images])
        return pixels.view(len(images), height // 2, 2, width // 2, 2, 3).mean((2, 4))


class Coarse(Fine):
    """One patch of 8 pixels for each of `Colours`: the image is enlarged."""

    name, patch_size = "coarse", 8

    def patch_features(self, images):
        return super().patch_features([i.resize((i.width // 4, i.height // 4)) for i in images])


class Attentive(Colours):
    """Attends over mean colours as values."""

    def encode_patches(self, images, attend, *, whole_block=False, features=None):
        rows = super().encode_patches(images, attend)
        if features is None:
            return rows
        value = rows.flatten(1, 2)[:, None]
        found = attend(value, value, value, rows.shape[1:3], features=features)
        return found[:, 0].view(*features.shape[:3], 3)


@pytest.mark.parametrize(("second", "grid"), [(Fine, (8, 16)), (Coarse, (4, 8))])
@pytest.mark.parametrize("window", [0, 8])
def test_maps_have_the_second_encoders_grid(second, grid, window):
    picture, other = halves(64, 32), second()
    segmenter = DenseSegmenter(Attentive(), ProxyCLIP(), 16, window, other)
    red, blue = segmenter.maps([picture], segmenter.encode_prompts(["red", "blue"]))[0]
    assert red.shape == grid
    assert other.sizes == [(2 * grid[1], 2 * grid[0])]  # once, whole
    half = grid[1] // 2
    assert (red[:, : half - 1] > blue[:, : half - 1] + 30).all()
    assert (blue[:, half + 1 :] > red[:, half + 1 :] + 30).all()


def test_scores_spread_within_a_colour():
    """A few wrong patches take the colour of those that look like them, by either encoder."""

    class Wrong(Colours):
        def encode_patches(self, images, attend, *, whole_block=False):
            rows = super().encode_patches(images, attend)
            rows[:, 1, 1] = torch.tensor([0.0, 1.0, 0.0])
            return rows

    texts = Colours().encode_texts(["red", "blue", "green"])
    for second in (None, Fine()):
        plain = DenseSegmenter(Wrong(), NACLIP(), 16, 0).maps([halves(64, 32)], texts)[0]
        assert int(plain[:, 1, 1].argmax()) == 2
        method = LPOSS(k=6 if second is None else 30)
        spread_out = DenseSegmenter(Wrong(), method, 16, 0, second).maps([halves(64, 32)], texts)[0]
        fine = 1 if second is None else 2
        assert spread_out.shape[1:] == (4 * fine, 8 * fine)
        wrong = int(spread_out[:, fine, fine].argmax()) == 2
        assert wrong == (second is None)  # what it thinks itself is like no other patch


def test_a_second_encoder_has_to_fit_the_method():
    with pytest.raises(UserError, match=r"proxyclip compares .* --patches-by"):
        DenseSegmenter(Colours(), ProxyCLIP())
    with pytest.raises(UserError, match="naclip compares no patches of a second encoder"):
        DenseSegmenter(Colours(), NACLIP(), second=Fine())


def test_a_second_encoder_has_to_give_its_grid():
    wrong = Fine()
    wrong.patch_features = lambda images: torch.ones(1, 3, 5, 2)
    for method in (ProxyCLIP(), LPOSS()):
        segmenter = DenseSegmenter(Attentive(), method, 16, 0, wrong)
        with pytest.raises(UserError, match=r"expected .1, 8, 16, width."):
            segmenter.maps([halves(64, 32)], Colours().encode_texts(["red"]))


def command(capsys, *more):
    code = cli.run(["segment", HEART, "--labels", "red heart", "--models", "pocket", *more])
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


@pytest.mark.parametrize("method", ["proxyclip", "lposs"])
def test_segment_by_a_second_encoder(method, capsys):
    code, out, err = command(capsys, "--method", method, "--patches-by", CLIP, "--json")
    assert code == 0, err
    row = json.loads(out)
    assert (row["method"], list(row["models"])) == (method, ["segmenter", "patches"])
    pixels = np.asarray(Image.open(HEART).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 120)
    (found,) = segment(HEART, ["red heart"], "pocket", method, patches_by=CLIP)
    (heart,) = found.regions
    assert (heart.mask & red).sum() / (heart.mask | red).sum() > 0.6
    assert row["regions"][0]["pixels"] == heart.pixels


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--method", "proxyclip"), "name it by --patches-by"),
        (("--patches-by", CLIP), "proxyclip and lposs do"),
        (("--method", "lposs", "--patches-by", CLIP.replace("clip", "lm")), "not an image encoder"),
        (("--method", "lposs", "-o", "alpha=1"), "below 1"),
        (("--model", "hf:x/y", "--patches-by", CLIP), "--patches-by"),
    ],
)
def test_what_segment_refuses(more, said, capsys):
    code, _, err = command(capsys, *more)
    assert (code, said in err) == (2, True), err
