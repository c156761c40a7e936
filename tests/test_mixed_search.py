"""Search among images and captions, and composed search: recorded numbers, by hand, as typed."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.golden import close, tensors
from tests.test_classify_options import SCENES, zeroshot
from zeroshot.errors import UserError
from zeroshot.ops import normalize
from zeroshot.ranking import Gallery
from zeroshot.ranking.composed import product_scores, search_by_product
from zeroshot.ranking.modality_means import ModalityMeans, QueryTerms, mean_of_kind

__all__ = ["zeroshot"]
CAPTIONS = [
    json.loads(line) for line in (SCENES[0].parent / "captions.jsonl").read_text().splitlines()
]


def of_texts(rows):
    """Queries of one text each."""
    signs = torch.tensor([[0.0, 1.0]], dtype=rows.dtype).expand(len(rows), 2)
    return QueryTerms(torch.zeros_like(rows), rows, signs)


def test_centred_rows_are_the_authors():
    z = tensors("grclip_a")
    means = ModalityMeans(z["in_image_mean"], z["in_text_mean"])
    of_queries = ModalityMeans(z["in_image_mean"], z["in_query_mean"])
    queries = normalize(of_texts(z["in_queries"]).centred(of_queries).total)
    alpha = torch.tensor([1.0, 0.0, float(z["hp_alpha"])], dtype=torch.float64)[z["in_mode"]]
    rows = means.rows(z["in_images"], z["in_texts"], alpha)
    close(queries @ rows.T, z["out_sims"])
    blended = torch.full((len(rows),), float(z["out_blend_alphas"][6]), dtype=torch.float64)
    both = means.rows(z["in_images"], z["in_texts"], blended)
    close(queries @ both.T, z["out_blend_sims_alpha6"])
    # one mean for queries and captions is what a gallery can give: another number
    ours = normalize(of_texts(z["in_queries"]).centred(means).total) @ rows.T
    assert (ours - z["out_sims"]).abs().max() > 1e-3


def test_terms_are_centred_one_by_one():
    eye = torch.eye(2, dtype=torch.float64)
    images, texts = eye.new_tensor([[0.6, 0.8]]), eye.new_tensor([[-0.8, -0.6]])
    terms = QueryTerms(images, texts, eye.new_tensor([[1, -1]]))
    centred = terms.centred(ModalityMeans(eye[0], eye[1]))
    close(centred.images, [[-0.4, 0.8]])
    close(centred.texts, [[-0.8, 0.4]])


def test_few_rows_have_no_mean():
    with pytest.raises(UserError, match="centres captions by their mean, and 19 are too few"):
        mean_of_kind("captions", torch.ones(2), 19)


def test_products_and_sums_are_the_authors():
    z = tensors("basic_a")
    i, t = z["in_images"] @ z["in_gallery"].T, z["in_texts"] @ z["in_gallery"].T
    close(product_scores(i, t, zero=True), z["out_scores_product"])
    close(i + t, z["out_scores_sum"])


def test_a_product_by_hand():
    i, t = torch.tensor([[-0.5, -0.1, -0.3]]), torch.tensor([[0.2, 0.4, 0.6]])
    close(product_scores(i, t), [[0.0, 0.5, 0.5]], rtol=1e-6)
    close(product_scores(i[:, :1], t[:, :1]), [[1.0]])


@pytest.mark.parametrize("block", [1, 3, 100])
def test_search_by_product_equals_the_matrix(block):
    g = torch.Generator().manual_seed(0)
    rows, i, t = (normalize(torch.randn(n, 6, generator=g)) for n in (17, 4, 4))
    hits = search_by_product(i, t, Gallery.of(rows), 5, block)
    scores = product_scores((i @ rows.T).double(), (t @ rows.T).double())
    values, index = scores.topk(5)
    assert torch.equal(hits.index, index)
    close(hits.scores, values, rtol=1e-5)
    cosines = normalize(i + t) @ rows.T
    close(hits.cosines, cosines.gather(1, index), rtol=1e-5)
    assert search_by_product(i, t, Gallery(rows[:0]), 5).index.shape == (4, 0)


# As a user meets them


@pytest.fixture
def table(tmp_path):
    """24 images, of which only the copies of the second half have captions."""
    lines = []
    for number in range(24):
        row = CAPTIONS[number % 8]
        name = f"{number:02}.png"
        shutil.copy(SCENES[0].parent / row["path"], tmp_path / name)
        caption = {"caption": f"picture {number}: {row['caption']}"} if number >= 4 else {}
        lines.append(json.dumps({"path": name} | caption))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "pairs.jsonl"


def searched(zeroshot, *more):
    code, rows, said = zeroshot("search", *more, "--models", "pocket", "-k", "24")
    assert code == 0, said
    return rows


def test_captions_are_searched_too(zeroshot, table):
    asked = ("a large red heart", table)
    plain = {row["path"]: row["score"] for row in searched(zeroshot, *asked)}
    for weight in ("0", "0.5", "1"):
        rows = searched(zeroshot, *asked, "--caption-weight", weight)
        assert len(rows) == 24
        scores = {row["path"]: row["score"] for row in rows}
        assert scores != plain
        first = [s for path, s in scores.items() if path.endswith(("00.png", "08.png"))]
        # the same picture, without and with its caption
        assert (first[0] == pytest.approx(first[1], abs=1e-5)) == (weight == "0")
        assert rows[0]["path"].endswith(("00.png", "08.png", "16.png"))


def test_the_mean_of_few_images_is_refused(zeroshot):
    words = ("search", "a red heart", *SCENES, "--models", "pocket", "--caption-weight", "0.5")
    code, _, said = zeroshot(*words)
    assert code == 2
    assert "centres images by their mean, and 8 are too few" in " ".join(said.split())


def test_a_composed_query_needs_both(zeroshot):
    heart = ("--image", SCENES[0], *SCENES)
    black, product = ("--plus", "black background"), ("--compose", "product")
    fitting = [row["path"] for row in searched(zeroshot, *heart, *black, *product)]
    both = searched(zeroshot, *heart, *black)
    assert {row["method"] for row in both} == {"cosine"}
    assert fitting != [row["path"] for row in both]
    without = searched(zeroshot, *heart, "--minus", "white background", *product)
    assert {row["method"] for row in without} == {"product"}
    assert np.all(np.diff([row["score"] for row in without]) <= 0)
    for more, message in (
        ((), "has only images: add the other kind"),
        (("--plus", "black", "--index", "ivf"), "leave --method and --index out"),
    ):
        code, _, said = zeroshot(
            "search", *heart, "--models", "pocket", "--compose", "product", *more
        )
        assert code == 2
        assert message in " ".join(said.split())
