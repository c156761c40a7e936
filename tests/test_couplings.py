"""Couplings against equations in numpy, against their authors' output, and on known worlds."""

import pytest
import torch

from tests.test_asif import arrays
from zeroshot.methods.csa import CSA
from zeroshot.methods.csa_asif import CSAASIF
from zeroshot.methods.procrustes import Procrustes
from zeroshot.methods.relative import Relative, relative
from zeroshot.methods.ridge_cca import RidgeCCA

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
