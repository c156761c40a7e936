"""Couplings against equations in numpy, against their authors' output, and on known worlds."""

import re
import sys

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.test_asif import arrays
from zeroshot import ops
from zeroshot.errors import ApproximateWarning, NotAvailableError, UserError
from zeroshot.methods import _anchor_index, _relative_representations, name_of
from zeroshot.methods._anchor_matrix import AnchorMatrix
from zeroshot.methods.asif import ASIF
from zeroshot.methods.auto import Auto
from zeroshot.methods.csa import CSA
from zeroshot.methods.csa_asif import CSAASIF
from zeroshot.methods.procrustes import Procrustes
from zeroshot.methods.relative import Relative, relative
from zeroshot.methods.ridge_cca import RidgeCCA
from zeroshot.ops import normalize
from zeroshot.packaging.extras import how_to_install

CSA_GOLDEN = arrays("csa_a")
HYBRID = arrays("csa_asif_a")
PROCRUSTES = arrays("procrustes_a")
CCA = arrays("ridge_cca_a")
RELATIVE = arrays("relative_a")


def double(z):
    return {k: v.double() for k, v in z.items()}


def sims(fitted, z):
    """Scores of every image with every single prompt, `[n c*t]`."""
    return fitted.scores(z["query_img"], z["prompt_txt"][:, None])


def close(ours, theirs, relative=1e-6):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=relative * float(theirs.abs().max()))


class TestCSA:
    z = double(CSA_GOLDEN)
    anchors = z["anchors_img"], z["anchors_txt"]

    @pytest.mark.parametrize("i", [0, 1, 2])
    def test_published_equation(self, i):
        """Their weights carry a factor N / (N - 1)."""
        s = int(self.z["s_dims"][i])
        fitted = CSA(s=s, lam=0.0).fit(*self.anchors)
        factor = float(self.z["published_corr_over_rho"][0])
        close(sims(fitted, self.z) * factor, self.z["sims_published"][i])
        close(fitted.directions.rho * factor, self.z["published_corr_coeff"][:s])

    @pytest.mark.parametrize("i", [0, 1, 2])
    @pytest.mark.parametrize("ridge", [0, 1])
    def test_ridge(self, i, ridge):
        s = int(self.z["s_dims"][i])
        fitted = CSA(s=s, lam=0.0, ridge=float(self.z["ridges"][ridge])).fit(*self.anchors)
        close(sims(fitted, self.z), self.z[f"sims_ridge{ridge}"][i])
        close(fitted.directions.rho, self.z[f"ridge{ridge}_corr_coeff"][:s])

    def test_corrected_head(self):
        """Their code with the transpose put right has a ridge of 1e-5 on one side."""
        for i, s in enumerate(self.z["s_dims"].int().tolist()):
            fitted = CSA(s=s, lam=0.0).fit(*self.anchors)
            close(sims(fitted, self.z), self.z["sims_fixed"][i], 1e-6)

    def test_without_weights(self):
        fitted = CSA(s=int(self.z["s_dims"][1]), lam=0.0, weighting="none").fit(*self.anchors)
        close(sims(fitted, self.z), self.z["sims_published_equal_weights"][0])

    def test_edits(self):
        z = self.z
        fitted = CSA(s=int(z["s_dims"][1]), lam=0.0, ridge=float(z["ridges"][0]))
        fitted = fitted.fit(*self.anchors)
        added = fitted.add(z["extra_img"], z["extra_txt"])
        close(sims(added, z), z["sims_ridge0_add20"][0])
        close(sims(fitted.remove(z["removed_ids"].long()), z), z["sims_ridge0_remove15"][0])
        close(sims(added.remove(torch.arange(413, 433)), z), sims(fitted, z), 1e-11)

    def test_their_published_code_is_another_method(self):
        """`U` for `U'`: kept here to show that the difference is theirs and not small."""
        ours = sims(CSA(s=int(self.z["s_dims"][2]), lam=0.0).fit(*self.anchors), self.z)
        assert (ours - self.z["sims_head"][2]).abs().max() > 0.3


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("j", [0, 1])
def test_csa_asif(i, j):
    z = double(HYBRID)
    fitted = CSAASIF(
        s=int(z["s"]), lam=float(z["lams"][i]), k=int(z["ks"][j]), p=float(z["p"])
    ).fit(z["anchors_img"], z["anchors_txt"])
    close(sims(fitted, z), z["sims"][i, j])
    images = fitted.image_coordinates(z["query_img"])
    texts = fitted.text_coordinates(z["prompt_txt"])
    close(images @ texts.T, z["coordinate_cosine"][i])
    if i == 0:  # signs of directions are arbitrary, the same on both sides
        close(images.abs(), z["coords_query"].abs())
        close(texts.abs(), z["coords_prompt"].abs())
    prompts = fitted.map_texts(z["prompt_txt"]).view(7, 3, -1).mean(1)
    prompts = prompts / prompts.norm(dim=1, keepdim=True)
    close(fitted.map_images(z["query_img"]) @ prompts.T, z["mean_template_scores"][i, j])


@pytest.mark.parametrize(
    ("variant", "golden"),
    [
        ("orthogonal", "orthogonal"),
        ("procrustes", "procrustes_translated_cosine"),
        ("linear", "linear"),
        ("l_ortho", "l_ortho"),
        ("linear_no_intercept", "linear_no_intercept"),
    ],
)
def test_procrustes(variant, golden):
    z = double(PROCRUSTES)
    fitted = Procrustes(variant=variant).fit(z["anchors_img"], z["anchors_txt"])
    close(sims(fitted, z), z[f"sims_{golden}"])
    if f"{variant}_W" in z and variant != "procrustes":  # theirs is padded with a free basis
        close(fitted.map_, z[f"{variant}_W"])
    if variant == "procrustes":
        theirs = z["procrustes_translated"]
        close(fitted.map_images(z["query_img"]), theirs / theirs.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("weighting", ["none", "csa", "cosine"])
@pytest.mark.parametrize(("i", "j"), [(0, 1), (1, 0), (1, 1)])
def test_ridge_cca(weighting, i, j):
    z = double(CCA)
    lam, dims = float(z["lams"][i]), int(z["dims"][j])
    fitted = RidgeCCA(lam=lam, dims=dims, weighting=weighting)
    fitted = fitted.fit(z["anchors_img"], z["anchors_txt"])
    close(sims(fitted, z), z[f"sims_{weighting}_l{i}_d{j}"])
    close(fitted.directions_.rho, z[f"rho_l{i}_d{j}"])


def test_relative():
    z = double(RELATIVE)
    anchors = z["anchors_img"], z["anchors_txt"]
    close(sims(Relative().fit(*anchors), z), z["sims"])
    few = z["subset_ids"].long()
    subset = anchors[0][few], anchors[1][few]
    close(sims(Relative().fit(*subset), z), z["sims_subset"])
    close(relative(z["query_img"][:16], anchors[0]), z["relative_img_first16"])
    close(relative(z["prompt_txt"][:10], anchors[1]), z["relative_txt_first10"])
    for projection in ("inner", "angular", "basis_change"):
        ours = relative(z["query_img"], subset[0], projection)
        close(ours, z[f"{projection}_img"])


@pytest.mark.parametrize("projection", ["cosine", "inner", "angular", "basis_change"])
def test_relative_in_a_short_basis_scores_as_written_out(projection):
    z = double(RELATIVE)
    anchors = z["anchors_img"], z["anchors_txt"]
    images = relative(z["query_img"], anchors[0], projection)
    texts = relative(z["prompt_txt"], anchors[1], projection)
    expected = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    close(sims(Relative(projection=projection).fit(*anchors), z), expected)


# What every coupling can do

COUPLINGS = {
    "asif": ASIF(k=20, p=2.0),
    "asif centred": ASIF(k=20, p=3.0, center=True),
    "csa": CSA(lam=0.3),
    "csa cosine": CSA(lam=0.3, weighting="cosine", s=6),
    "csa_asif": CSAASIF(k=20, p=2.0, s=7),
    "procrustes": Procrustes(),
    "procrustes z": Procrustes(variant="procrustes"),
    "ridge_cca": RidgeCCA(lam=0.01),
    "relative": Relative(center=True),
    "auto": Auto(budget=1.0, splits=1),
}


def world(count, seed=0, dtype=torch.float64):
    """Two views of one latent space, with an offset and noise of their own."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(8, 14, generator=generator), torch.randn(8, 11, generator=generator)
    generator = torch.Generator().manual_seed(seed + 1)
    latent = torch.randn(count, 8, generator=generator)
    sides = [
        latent @ m + 1.5 + 0.3 * torch.randn(count, m.shape[1], generator=generator) for m in maps
    ]
    return sides[0].to(dtype), sides[1].to(dtype)


@pytest.mark.parametrize("name", COUPLINGS)
class TestCoupling:
    images, texts = world(150)
    queries, prompts = world(9, seed=0)

    def fit(self, name):
        return COUPLINGS[name].fit(self.images, self.texts)

    def test_edits_equal_a_rebuild(self, name):
        fitted = self.fit(name)
        known = fitted.coupling_ if name == "auto" else COUPLINGS[name]
        more = world(7, seed=0)
        gone = torch.tensor([3, 0, 149, 152, 77, 78])
        kept = torch.ones(157, dtype=torch.bool)
        kept[gone] = False
        images, texts = torch.cat([self.images, more[0]]), torch.cat([self.texts, more[1]])
        edited = fitted.add(*more).remove(gone)
        rebuilt = known.fit(images[kept], texts[kept])
        ours = edited.cosines(self.queries, self.prompts[:, None])
        theirs = rebuilt.cosines(self.queries, self.prompts[:, None])
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        again = edited.add(images[gone], texts[gone]).remove(torch.arange(151, 157))
        torch.testing.assert_close(
            again.cosines(self.queries, self.prompts[:, None]), theirs, rtol=1e-9, atol=1e-11
        )

    def test_an_edit_leaves_the_original(self, name):
        fitted = self.fit(name)
        before = fitted.scores(self.queries, self.prompts[:, None])
        fitted.add(*world(7, seed=5)).remove(torch.arange(9))
        torch.testing.assert_close(fitted.scores(self.queries, self.prompts[:, None]), before)

    def test_joint_rows_give_the_cosines(self, name):
        fitted = self.fit(name)
        left, right = fitted.map_images(self.queries), fitted.map_texts(self.prompts)
        torch.testing.assert_close(
            normalize(left) @ normalize(right).T,
            fitted.cosines(self.queries, self.prompts[:, None]),
            rtol=1e-9,
            atol=1e-11,
        )
        scores = fitted.scores(self.queries, self.prompts[:, None])
        torch.testing.assert_close(left @ right.T, scores, rtol=1e-9, atol=1e-11)

    def test_match(self, name):
        """Equal to the cosines, but for ASIF, which looks at the image's own anchors alone."""
        fitted = self.fit(name)
        order = torch.stack([torch.arange(i, i + 4) % 9 for i in range(9)])
        texts = self.prompts[order]  # [b, k, e]
        joint = normalize(fitted.map_images(self.queries))
        ours = fitted.match(joint, texts)
        expected = torch.stack(
            [
                fitted.cosines(q[None], t[:, None])[0]
                for q, t in zip(self.queries, texts, strict=True)
            ]
        )
        if "asif" not in name:
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
            return
        correlation = torch.corrcoef(torch.stack([ours.flatten(), expected.flatten()]))[0, 1]
        assert correlation > 0.9

    def test_precisions_agree(self, name):
        fitted = COUPLINGS[name].fit(self.images.float(), self.texts.float())
        single = fitted.cosines(self.queries.float(), self.prompts.float()[:, None])
        assert single.dtype == torch.float32
        if name != "auto":  # which may choose otherwise between equals
            double = self.fit(name).cosines(self.queries, self.prompts[:, None])
            torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4)

    def test_half_precision_anchors(self, name):
        fitted = COUPLINGS[name].fit(normalize(self.images).half(), normalize(self.texts).half())
        given = normalize(self.queries).float(), normalize(self.prompts).float()[:, None]
        assert fitted.cosines(*given).isfinite().all()

    def test_int8_anchors(self, name):
        """What counts is their direction: as the unit rows that they are multiples of."""
        sides = [normalize(side).mul(700).round().clamp(-127, 127) for side in world(150)]
        known = self.fit(name).coupling_ if name == "auto" else COUPLINGS[name]
        given = self.queries.float(), self.prompts.float()[:, None]
        ours = known.fit(*(side.to(torch.int8) for side in sides)).cosines(*given)
        expected = known.fit(*(normalize(side).float() for side in sides)).cosines(*given)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("pairs", [1, 2, 3, 12])
    def test_few_pairs(self, name, pairs):
        """Right answers, or one message that says what is missing."""
        try:
            fitted = COUPLINGS[name].fit(self.images[:pairs], self.texts[:pairs])
        except UserError as error:
            said = str(error)
            assert pairs < 3
            assert "at least" in said
            return
        scores = fitted.scores(self.queries, self.prompts[:, None])
        assert scores.shape == (9, 9)
        assert scores.isfinite().all()

    def test_duplicates(self, name):
        """Each pair three times: right for linear maps, finite for all; equal pairs do not vary."""
        fitted = COUPLINGS[name].fit(self.images.repeat(3, 1), self.texts.repeat(3, 1))
        assert fitted.scores(self.queries, self.prompts[:, None]).isfinite().all()
        one = self.images[:1].repeat(60, 1), self.texts[:1].repeat(60, 1)
        try:
            same = COUPLINGS[name].fit(*one)
        except UserError as error:
            said = str(error)
            assert "vary" in said
            return
        assert same.scores(self.queries, self.prompts[:, None]).isfinite().all()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y: (x[:0], y[:0]), "0 anchor images and 0 anchor texts"),
            (lambda x, y: (x[:5], y[:4]), "5 anchor images and 4 anchor texts"),
            (lambda x, y: (spoiled(x, torch.nan), y), "anchor images: row 2 is not finite"),
            (lambda x, y: (x, spoiled(y, torch.inf)), "anchor texts: row 2 is not finite"),
            (lambda x, y: (spoiled(x, 0.0), y), "anchor images: row 2 is zero"),
        ],
    )
    def test_anchors_that_are_wrong(self, name, change, message):
        with pytest.raises(UserError, match=message):
            COUPLINGS[name].fit(*change(self.images, self.texts))
        with pytest.raises(UserError, match=message):
            self.fit(name).add(*change(self.images[:9], self.texts[:9]))

    def test_rows_that_are_wrong(self, name):
        fitted = self.fit(name)
        with pytest.raises(UserError, match="images of width 13, but the anchors' width is 14"):
            fitted.map_images(self.queries[:, 1:])
        with pytest.raises(UserError, match="texts of width 10, but the anchors' width is 11"):
            fitted.map_texts(self.prompts[:, 1:])
        with pytest.raises(UserError, match="images: row 2 is not finite"):
            fitted.map_images(spoiled(self.queries, torch.nan))
        with pytest.raises(UserError, match="anchor images of width 13"):
            fitted.add(self.images[:, 1:], self.texts)

    def test_edits_that_are_wrong(self, name):
        fitted = self.fit(name)
        with pytest.raises(UserError, match="no anchor 150: there are 150"):
            fitted.remove(torch.tensor([3, 150]))
        with pytest.raises(UserError, match="no anchor -1"):
            fitted.remove(torch.tensor([-1]))
        with pytest.raises(UserError, match="all 150 anchors would be removed"):
            fitted.remove(torch.arange(150))

    def test_not_fitted(self, name):
        with pytest.raises(RuntimeError, match="call fit"):
            COUPLINGS[name].map_images(self.queries)


def spoiled(rows, value):
    rows = rows.clone()
    rows[2] = value
    return rows


# Explanations


@pytest.mark.parametrize(
    "coupling",
    [
        ASIF(k=20, p=2.0),
        ASIF(k=20, p=3.0, templates="max"),
        CSA(lam=0.3),
        CSA(lam=0.3, weighting="cosine", s=6),
        CSA(lam=0.3, weighting="none", templates="max"),
        CSAASIF(k=20, p=2.0, s=7),
    ],
)
def test_shares_sum_to_the_score(coupling):
    fitted = coupling.fit(*world(150))
    images, texts = world(6)
    for n in range(6):
        prompts = texts[[n, (n + 1) % 6]]
        found = fitted.explain(images[n], prompts, count=150)
        score = float(fitted.scores(images[n : n + 1], prompts[None])[0, 0])
        assert found.score == pytest.approx(score, rel=1e-9)
        assert sum(found.shares) == pytest.approx(score, rel=1e-9)
        sizes = [abs(share) for share in found.shares]
        assert sizes == sorted(sizes, reverse=True)
        few = fitted.explain(images[n], prompts, count=3)
        assert few.shares == found.shares[:3]


def test_authors_attributions():
    z = double(arrays("asif_retrieval_a"))
    fitted = ASIF(k=int(z["k"]), p=float(z["p"])).fit(z["anchors_img"], z["anchors_txt"])
    for n, query in enumerate(z["attr_query"].int().tolist()):
        prompt = z["prompt_txt"][int(z["attr_prompt_row"][n])]
        found = fitted.explain(z["query_img"][query], prompt[None], count=413)
        shares = torch.zeros(413, dtype=torch.float64)
        shares[list(found.anchors)] = torch.tensor(found.shares, dtype=torch.float64)
        close(shares, z["attr_contributions"][n], 1e-9)
        assert found.score == pytest.approx(float(z["attr_score"][n]), rel=1e-9)
        assert int((shares != 0).sum()) == int(z["attr_nonzero"][n])


def test_a_removed_anchor_loses_its_share():
    """What an anchor gave is what its removal takes, where nothing takes its place."""
    images, texts = world(30)
    queries, prompts = world(2)
    fitted = ASIF(k=30, p=2.0).fit(images, texts)
    found = fitted.explain(queries[0], prompts[:1], count=30)
    without = fitted.remove(torch.tensor([found.anchors[0]]))
    rows, texts_ = fitted.map_images(queries), fitted.map_texts(prompts)
    left = float((rows[0] * texts_[0]).sum()) - found.shares[0]
    scale = without.map_texts(prompts)[0].norm() / texts_[0].norm()
    assert left > 0
    assert scale > 0


# Choosing


def test_auto_finds_the_kind_of_world():
    """A linear world wants a linear map; one of many small bends wants neighbours."""
    linear = Auto(budget=5.0, splits=1).fit(*world(300))
    assert name_of(linear.coupling_) in {"csa", "procrustes"}
    generator = torch.Generator().manual_seed(2)
    latent = torch.rand(1500, 2, generator=generator) * 6
    bends = [torch.randn(2, 40, generator=generator) * 2 for _ in range(2)]
    images, texts = (torch.sin(latent @ bend) for bend in bends)
    local = Auto(budget=5.0, splits=1).fit(images, texts)
    assert name_of(local.coupling_) in {"asif", "csa_asif"}
    assert local.report_.verdict == "couple"


def test_auto_is_the_same_each_time_and_keeps_its_budget():
    images, texts = world(400)
    first, second = (Auto(splits=2).choose(images, texts) for _ in range(2))
    assert first == second
    assert first.splits == 2
    small = Auto(splits=2, budget=0.0001).choose(images, texts)
    assert (small.splits, small.pairs) == (1, 200)


def test_auto_says_that_nothing_couples():
    images, texts = world(300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    report = Auto(splits=1).choose(images, texts[order])
    assert report.verdict == "do not couple"
    assert "do not couple" in report.lines()[-1]
    assert Auto().choose(images[:20], texts[:20]).verdict == "too few pairs to tell"
    assert "too few to set any aside" in Auto().choose(images[:20], texts[:20]).lines()[0]


def test_auto_misuse():
    images, texts = world(60)
    with pytest.raises(UserError, match="did you mean 'asif'"):
        Auto(among="asiff").fit(images, texts)
    with pytest.raises(UserError, match="budget=0"):
        Auto(budget=0).fit(images, texts)
    only = Auto(among="asif, procrustes").choose(images, texts)
    assert {name_of(only.chosen.coupling), *(name_of(o.coupling) for o in only.others)} == {
        "asif",
        "procrustes",
    }


# Equations in numpy, sharing no code


def unit_rows(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_csa_equals_the_equation():
    x, y = (side.numpy() for side in world(150))
    q, t = (side.numpy() for side in world(9, seed=0))
    xc, yc = x - x.mean(0), y - y.mean(0)
    sxx, syy = xc.T @ xc, yc.T @ yc
    sxx += 0.7 * np.trace(sxx) / 14 * np.eye(14)
    syy += 0.7 * np.trace(syy) / 11 * np.eye(11)
    # the generalised eigenproblem instead of whitening and an SVD
    values, a = scipy.linalg.eigh(xc.T @ yc @ np.linalg.solve(syy, yc.T @ xc), sxx)
    order = np.argsort(-values)[:5]
    rho, a = np.sqrt(values[order]), a[:, order]
    b = np.linalg.solve(syy, yc.T @ xc @ a) / rho
    left, right = unit_rows((q - x.mean(0)) @ a), unit_rows((t - y.mean(0)) @ b)
    fitted = CSA(s=5, lam=0.7).fit(torch.from_numpy(x), torch.from_numpy(y))
    ours = fitted.scores(torch.from_numpy(q), torch.from_numpy(t)[:, None])
    np.testing.assert_allclose(ours.numpy(), (left * rho) @ right.T, rtol=1e-8, atol=1e-10)


def test_procrustes_equals_scipy():
    x, y = (unit_rows(side.numpy() - side.numpy().mean(0)) for side in world(150))
    wide = np.zeros((150, 14))
    wide[:, :11] = y
    rotation, _ = scipy.linalg.orthogonal_procrustes(x, wide)
    fitted = Procrustes().fit(*world(150))
    np.testing.assert_allclose(fitted.map_.numpy(), rotation[:, :11], atol=1e-9)


def test_a_planted_rotation_is_found():
    x, _ = world(60)
    rotation = torch.linalg.qr(world(14, seed=3)[0]).Q
    fitted = Procrustes().fit(x, x @ rotation)
    torch.testing.assert_close(fitted.map_, rotation, atol=1e-9, rtol=0)


def test_ridge_cca_equals_the_equation():
    x, y = (side.numpy() for side in world(150))
    q, t = (side.numpy() for side in world(9))
    sides = []
    for anchors, rows in ((x, q), (y, t)):
        unit = unit_rows(anchors - anchors.mean(0))
        held = unit - unit.mean(0)
        root = scipy.linalg.sqrtm(held.T @ held / 150 + 0.02 * np.eye(anchors.shape[1])).real
        sides.append((held, np.linalg.inv(root), unit_rows(rows - anchors.mean(0))))
    cross = sides[0][1] @ (sides[0][0].T @ sides[1][0] / 150) @ sides[1][1]
    u, rho, vh = np.linalg.svd(cross)
    left = unit_rows(sides[0][2] @ sides[0][1] @ u[:, :6] * np.sqrt(rho[:6]))
    right = unit_rows(sides[1][2] @ sides[1][1] @ vh[:6].T * np.sqrt(rho[:6]))
    fitted = RidgeCCA(lam=0.02, dims=6).fit(torch.from_numpy(x), torch.from_numpy(y))
    ours = fitted.scores(torch.from_numpy(q), torch.from_numpy(t)[:, None])
    np.testing.assert_allclose(ours.numpy(), left @ right.T, rtol=1e-8, atol=1e-10)


# Scale


def test_topk_of_many_keys_is_exact():
    """Against a full sort: past the sample, with ties, with keys sorted against the sample."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(7, 5, generator=generator)
    keys = torch.randn(9000, 5, generator=generator)
    keys = keys[(keys @ queries[0]).argsort()]
    keys[100:5000] = keys[100]
    for k in (1, 40, 1000, 3000, 9000):
        values, index = ops.topk_stream(queries, keys, k, block=700)
        expected = (queries @ keys.T).sort(dim=1, descending=True).values[:, :k]
        torch.testing.assert_close(values, expected)
        assert all(len(set(row)) == k for row in index.tolist())
        torch.testing.assert_close((queries @ keys.T).gather(1, index), values)


def test_topk_of_many_queries(monkeypatch):
    monkeypatch.setattr(ops, "QUERIES_AT_ONCE", 3)
    queries, keys = torch.randn(8, 4), torch.randn(50, 4)
    values, _ = ops.topk_stream(queries, keys, 5)
    torch.testing.assert_close(values, (queries @ keys.T).topk(5, dim=1).values)


def test_pieces_are_rows():
    """Cut and joined, against a matrix that is cut and joined."""
    rows = torch.randn(50, 4, dtype=torch.float64)
    more = torch.randn(9, 4, dtype=torch.float64)
    held = AnchorMatrix.from_embeddings(rows, centred=True).add(more)
    whole = torch.cat([rows, more])
    for _ in range(6):
        gone = torch.randperm(len(whole))[:7]
        held = held.remove(gone)
        kept = torch.ones(len(whole), dtype=torch.bool)
        kept[gone] = False
        whole = whole[kept]
        assert len(held) == len(whole)
        torch.testing.assert_close(held.mean, whole.mean(0))
        directed = normalize(whole - whole.mean(0))
        for size in (1, 5, 100):
            torch.testing.assert_close(torch.cat(list(held.blocks(size))), directed)
            assert all(len(block) <= size for block in held.blocks(size))
        some = torch.randint(len(whole), (11,))
        torch.testing.assert_close(held.take(some), directed[some])


def test_approximate_search(monkeypatch):
    """All cells looked into: the exact answer. One cell alone: less, and the recall says so."""
    images, texts = world(900, dtype=torch.float32)
    queries, prompts = world(9, dtype=torch.float32)
    exact = ASIF(k=40, p=2.0, center=True).fit(images, texts)
    expected = exact.scores(queries, prompts[:, None])
    approximate = ASIF(k=40, p=2.0, center=True, index="ivf")
    monkeypatch.setattr(_anchor_index, "SHARE", 1)
    with pytest.warns(ApproximateWarning, match=r"900 anchor \w+ finds 1\.000 of the 40"):
        fitted = approximate.fit(images, texts)
    ours = fitted.scores(queries, prompts[:, None])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(_anchor_index, "SHARE", 30)
    with pytest.warns(ApproximateWarning):
        few = approximate.fit(images, texts)
    truth = normalize(images - images.mean(0))[torch.arange(100) * 9]
    keys = normalize(images - images.mean(0))
    near = (truth @ keys.T).topk(40, dim=1).indices
    held = few.image_index_.topk(truth, 40)[1]
    recall = (
        torch.stack([torch.isin(n, h) for n, h in zip(near, held, strict=True)]).double().mean()
    )
    assert few.image_index_.recall == pytest.approx(float(recall), abs=2e-3)
    assert 0.1 < recall < 0.95
    assert few.scores(queries, prompts[:, None]).isfinite().all()
    # what was edited searches exactly
    edited = few.add(images[:2], texts[:2]).remove(torch.tensor([900, 901]))
    torch.testing.assert_close(edited.scores(queries, prompts[:, None]), expected)


def test_no_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(NotAvailableError, match=re.escape(how_to_install("index"))):
        ASIF(k=4, index="ivf").fit(*world(30))


def test_rows_in_full_are_bounded(monkeypatch):
    monkeypatch.setattr(_relative_representations, "DENSE_BYTES", 1000)
    images, texts = world(150)
    fitted = ASIF(k=5).fit(images, texts)
    with pytest.raises(UserError, match=r"9 rows over 150 anchors .* csa has short ones"):
        fitted.map_images(world(9)[0])
    assert fitted.scores(world(9)[0], world(9)[1][:, None]).shape == (9, 9)
