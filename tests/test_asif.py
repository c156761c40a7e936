"""ASIF against loops, against the authors' own output, and on worlds with a known answer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from zeroshot.errors import UserError
from zeroshot.methods._anchor_matrix import AnchorMatrix
from zeroshot.methods._relative_representations import RelativeRepresentations
from zeroshot.methods.asif import ASIF
from zeroshot.ops import normalize

DATA = Path(__file__).parent / "data" / "coupling"


def arrays(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as z:
        return {key: torch.from_numpy(z[key]) for key in z.files if key != "meta"}


GOLDEN = arrays("asif_a")
EDIT = arrays("asif_edit_a")
RETRIEVAL = arrays("asif_retrieval_a")


def described(rows, anchors, k, p):
    """The definition, one row at a time, in float64."""
    anchors = anchors / np.linalg.norm(anchors, axis=1, keepdims=True)
    out = np.zeros((len(rows), len(anchors)))
    for i, row in enumerate(rows):
        similarity = [anchor @ row / np.linalg.norm(row) for anchor in anchors]
        for j in sorted(range(len(anchors)), key=lambda j: -similarity[j])[:k]:
            out[i, j] = max(similarity[j], 0.0) ** p
    return out


def test_equals_the_definition():
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(5, 6)), rng.normal(size=(3, 2, 4))
    anchor_images, anchor_texts = rng.normal(size=(11, 6)), rng.normal(size=(11, 4))
    expected = np.zeros((5, 3))
    image_encoder_of = described(images, anchor_images, 7, 3)
    for c in range(3):
        text_encoder_of = described(texts[c], anchor_texts, 7, 3)
        text_encoder_of /= np.linalg.norm(text_encoder_of, axis=1, keepdims=True)
        expected[:, c] = (image_encoder_of @ text_encoder_of.T).mean(1)
    fitted = ASIF(k=7, p=3).fit(torch.from_numpy(anchor_images), torch.from_numpy(anchor_texts))
    ours = fitted.scores(torch.from_numpy(images), torch.from_numpy(texts))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


def guided(images, texts, anchors, k, p):
    """The score of guided decoding as the header of asif.py has it, number by number, in float64.

    `images` are rows over the anchors, `anchors` those of the texts.
    """
    a = len(anchors)
    length = np.linalg.norm(anchors, axis=1)
    sample = {j * a // 4096 for j in range(4096)}
    out = np.zeros(texts.shape[:2])
    for b, row in enumerate(images):
        near = sorted(range(a), key=lambda i: -row[i])[:k]
        for c, text in enumerate(texts[b]):
            y = text / np.linalg.norm(text)
            t = [max(float(anchors[i] @ y) / length[i], 0.0) ** p for i in range(a)]
            score = sum(row[i] * t[i] for i in near) / np.linalg.norm(row)
            if a <= 4096:
                square = sum(x * x for x in t)
            else:
                others = [t[i] * t[i] for i in sample if i not in near]
                square = sum(t[i] * t[i] for i in near)
                square += (a - k) * sum(others) / len(others)
            out[b, c] = score / square**0.5 if square else 0.0
    return out


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("pairs", [37, 4096, 5003])
def test_guided_decoding_equals_the_definition(pairs, center):
    """Also where the length of a text is estimated on a sample of the anchors."""
    rng = np.random.default_rng(pairs)
    anchor_images, anchor_texts = rng.normal(size=(pairs, 6)), rng.normal(size=(pairs, 4))
    images, texts = rng.normal(size=(2, 6)), rng.normal(size=(2, 3, 4))
    fitted = ASIF(k=7, p=3, center=center).fit(
        torch.from_numpy(anchor_images), torch.from_numpy(anchor_texts)
    )
    ours = fitted.match(fitted.map_images(torch.from_numpy(images)), torch.from_numpy(texts))
    if center:
        images, anchor_images = (x - anchor_images.mean(0) for x in (images, anchor_images))
        texts, anchor_texts = (x - anchor_texts.mean(0) for x in (texts, anchor_texts))
    expected = guided(described(images, anchor_images, 7, 3), texts, anchor_texts, 7, 3)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9)
    assert (expected > 0).all()


def test_guided_decoding_with_every_anchor_is_the_cosine():
    """What it leaves out is the picture's weaker anchors, and nothing else."""
    z = {k: v.double() for k, v in GOLDEN.items()}
    fitted = ASIF(k=len(z["anchors_img"]), p=2).fit(z["anchors_img"], z["anchors_txt"])
    texts = z["prompt_txt"][:6].view(2, 3, -1)
    images = fitted.map_images(z["query_img"][:2])
    full = torch.einsum(
        "ba,bka->bk", normalize(images), fitted.map_texts(texts.flatten(0, 1)).view(2, 3, -1)
    )
    torch.testing.assert_close(fitted.match(images, texts), full, rtol=1e-10, atol=0)


def test_a_text_that_resembles_no_anchor_scores_nothing():
    fitted = ASIF(k=2, p=2).fit(torch.eye(3), torch.eye(3))
    found = fitted.match(fitted.map_images(torch.ones(1, 3)), torch.tensor([[[-1.0, -2.0, -3.0]]]))
    assert found.tolist() == [[0.0]]


def test_by_hand():
    # similarities (.6, .8, -1): the two largest squared
    anchors = AnchorMatrix.from_embeddings(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, -0.8]]))
    row = torch.tensor([[0.6, 0.8]])
    for k, p, expected in (
        (2, 2.0, [0.36, 0.64, 0.0]),
        (3, 2.0, [0.36, 0.64, 0.0]),
        (1, 1.0, [0.0, 0.8, 0.0]),
    ):
        assert RelativeRepresentations.from_embeddings(row, anchors, k, p).dense().tolist() == [
            pytest.approx(expected)
        ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_authors_similarities(dtype):
    """Every k and p of the authors' run; stored as float32, so 1e-7 is the float64 floor."""
    z = GOLDEN
    tolerance = 1e-5 if dtype == torch.float32 else 1e-7
    fitted = ASIF().fit(z["anchors_img"].to(dtype), z["anchors_txt"].to(dtype))
    texts = z["prompt_txt"].to(dtype).view(int(z["n_classes"]), int(z["n_templates"]), -1)
    for i, k in enumerate(z["ks"].tolist()):
        for j, p in enumerate(z["ps"].tolist()):
            expected = z["sims"][i, j].to(dtype).view(-1, *texts.shape[:2])
            for templates, reduced in (("mean", expected.mean(-1)), ("max", expected.amax(-1))):
                method = replace(fitted, k=k, p=float(p), templates=templates)
                ours = method.scores(z["query_img"].to(dtype), texts)
                torch.testing.assert_close(ours, reduced, rtol=tolerance, atol=0)
            predicted = ours.argmax(1)
            assert torch.equal(predicted, z["predictions"][i, j].long())


def test_authors_centred_variant():
    """Centred by the anchors' means, both sides normalised."""
    z = {k: v.double() for k, v in GOLDEN.items()}
    for expected, k in zip(z["centred_clipped_sims"], z["centred_clipped_ks"].int(), strict=True):
        method = ASIF(k=int(k), p=float(z["centred_clipped_p"]), center=True)
        fitted = method.fit(z["anchors_img"], z["anchors_txt"])
        ours = normalize(fitted.map_images(z["query_img"])) @ fitted.map_texts(z["prompt_txt"]).T
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("edit", ["base", "add20", "remove15", "add20_remove15"])
def test_authors_edits(edit):
    z = {k: v.double() for k, v in EDIT.items()}
    images, texts = z["anchors_img"], z["anchors_txt"]
    if edit.startswith("add20"):
        images = torch.cat([images, z["added_img"]])
        texts = torch.cat([texts, z["added_txt"]])
    if edit.endswith("remove15"):
        kept = torch.ones(len(images), dtype=torch.bool)
        kept[z["removed_ids"].long()] = False
        images, texts = images[kept], texts[kept]
    fitted = ASIF(p=float(z["p"])).fit(images, texts)
    for k, expected in zip(z["ks"].int().tolist(), z[f"sims_{edit}"], strict=True):
        ours = replace(fitted, k=k).map_images(z["query_img"])
        ours = ours @ replace(fitted, k=k).map_texts(z["prompt_txt"]).T
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)


def test_authors_caption_ranking():
    z = {k: v.double() for k, v in RETRIEVAL.items()}
    fitted = ASIF(int(z["k"]), float(z["p"])).fit(z["anchors_img"], z["anchors_txt"])
    scores = fitted.map_images(z["query_img"]) @ fitted.map_texts(z["anchors_txt"]).T
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :20]
    assert torch.equal(order, z["ranked_caption_ids"].long())
    torch.testing.assert_close(scores, z["caption_scores"], rtol=1e-6, atol=1e-10)


def test_blocks_of_anchors_change_nothing():
    """The authors' code loses the last anchor at some block sizes (`quirk_sims`)."""
    from zeroshot.ops import topk_stream

    rows, anchors = normalize(GOLDEN["query_img"]), normalize(GOLDEN["anchors_img"])
    whole = topk_stream(rows, anchors, 84)
    for block in (1, 7, 83, 84, 206, 412, 413, 5000):
        values, index = topk_stream(rows, anchors, 84, block=block)
        torch.testing.assert_close(values, whole[0], rtol=1e-6, atol=1e-7)
        assert torch.equal(index.sort(1).values, whole[1].sort(1).values)


def test_mask_removes_a_prompt():
    z = GOLDEN
    fitted = ASIF(50, 2.0).fit(z["anchors_img"], z["anchors_txt"])
    texts = z["prompt_txt"].view(7, 3, -1)
    mask = torch.ones(7, 3, dtype=torch.bool)
    mask[2, 1:] = False
    for templates in ("mean", "max"):
        method = replace(fitted, templates=templates)
        masked = method.scores(z["query_img"], texts, mask)
        full = method.scores(z["query_img"], texts)
        alone = method.scores(z["query_img"], texts[2:3, :1])
        torch.testing.assert_close(masked[:, 2:3], alone)
        others = [0, 1, 3, 4, 5, 6]
        torch.testing.assert_close(masked[:, others], full[:, others])


@pytest.mark.parametrize("pairs", [1, 2, 413])
def test_any_number_of_anchors(pairs):
    z = GOLDEN
    fitted = ASIF(k=800).fit(z["anchors_img"][:pairs], z["anchors_txt"][:pairs])
    assert fitted.scores(z["query_img"], z["prompt_txt"].view(7, 3, -1)).isfinite().all()


def test_misuse():
    with pytest.raises(RuntimeError, match="call fit"):
        ASIF().map_images(torch.ones(1, 3))
    with pytest.raises(UserError, match="5 anchor images and 4 anchor texts"):
        ASIF().fit(torch.ones(5, 3), torch.ones(4, 2))
    with pytest.raises(UserError, match="k=0"):
        ASIF(k=0).fit(torch.ones(5, 3), torch.ones(5, 2))


def test_fit_returns_a_new_object_and_keeps_its_input():
    images = GOLDEN["anchors_img"].clone()
    plain = ASIF()
    fitted = plain.fit(images, GOLDEN["anchors_txt"])
    assert plain.anchor_images_ is None
    assert fitted.anchor_images_ is not None
    assert torch.equal(images, GOLDEN["anchors_img"])
    assert repr(fitted) == "ASIF(k=800, p=8.0, center=False, templates='mean', index='exact')"
