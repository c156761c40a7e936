"""What holds of every head that scores a picture and a text together."""

import json

import pytest
import torch
import transformers as tr

from tests.models import tiny_pairs
from zeroshot import models
from zeroshot.errors import UserError
from zeroshot.models.base import PairScorer
from zeroshot.models.vlm.image_text_matching import HEADS

TEXTS = ["a cat", "two dogs on a sofa", "red", "a cat", "is it a bird"]

every_head = pytest.mark.parametrize("name", tiny_pairs.PAIRS)


def load(directory):
    return models.load_pair_scorer(str(directory), device="cpu")


@pytest.fixture(scope="module")
def scorer_of(loaded):
    return lambda name: loaded(name, models.load_pair_scorer)


def shown(scorer, pictures):
    """Each picture, with the next one where the head reads two."""
    return [
        [pictures[(i + j) % len(pictures)] for j in range(scorer.pictures)]
        for i in range(len(pictures))
    ]


def close(tensor, other):
    torch.testing.assert_close(tensor, other, atol=2e-5, rtol=2e-5)


def test_every_head_is_tried():
    assert len(tiny_pairs.PAIRS) == len(HEADS) + 1  # NLVR2's class serves entailment too


@every_head
def test_it_is_a_pair_scorer(name, scorer_of):
    scorer = scorer_of(name)
    assert isinstance(scorer, PairScorer)
    assert scorer.positive < len(scorer.labels)
    assert scorer.name.endswith("/pairs.1/fp32")


@every_head
def test_a_batch_gives_what_its_rows_give(name, scorer_of, pictures):
    scorer = scorer_of(name)
    pairs = shown(scorer, pictures)
    together = scorer.score_pairs(pairs, TEXTS)
    alone = [scorer.score_pairs([p], [t]) for p, t in zip(pairs, TEXTS, strict=True)]
    assert together.shape == (len(TEXTS), len(scorer.labels))
    close(together, torch.cat(alone))
    assert together[:, scorer.positive].std() > 1e-4


@every_head
def test_probabilities_sum_to_one(name, scorer_of, pictures):
    scorer = scorer_of(name)
    if scorer.scored == "probability":
        total = scorer.score_pairs(shown(scorer, pictures), TEXTS).sum(1)
        close(total, torch.ones(len(TEXTS)))


@every_head
def test_no_pairs_give_no_rows(name, scorer_of):
    scorer = scorer_of(name)
    assert scorer.score_pairs([], []).shape == (0, len(scorer.labels))


@every_head
def test_a_text_that_is_too_long_is_refused_not_cut(name, scorer_of, pictures):
    scorer = scorer_of(name)
    assert scorer.context_length is not None
    long = " ".join("a" for _ in range(scorer.context_length))
    with pytest.raises(UserError, match=f"the model reads {scorer.context_length}"):
        scorer.score_pairs(shown(scorer, pictures)[:1], [long])


# ----------------------------------------------------- against the classes as transformers has them


def reference(kind, directory):
    return kind.from_pretrained(directory).eval()


def inputs_of(directory, picture, text):
    pixels = tr.AutoImageProcessor.from_pretrained(directory, backend="pil")
    tokens = tr.AutoTokenizer.from_pretrained(directory)
    return {
        **pixels(images=picture, return_tensors="pt"),
        **tokens([text], return_tensors="pt"),
    }


@torch.no_grad()
def test_blip_is_the_library_own_forward(directory_of, scorer_of, pictures):
    model = reference(tr.BlipForImageTextRetrieval, directory_of("blip_itm"))
    for picture, text in zip(pictures, TEXTS, strict=True):
        x = inputs_of(directory_of("blip_itm"), picture, text)
        x.pop("token_type_ids")
        close(
            scorer_of("blip_itm").score_pairs([[picture]], [text]), model(**x).itm_score.softmax(1)
        )


@torch.no_grad()
@pytest.mark.parametrize("placed", [False, True])
def test_blip_2_reads_its_text_behind_the_queries(placed, directory_of, pictures, tmp_path):
    """Published with a place for image tokens, or without: the same score."""
    model = reference(tr.Blip2ForImageTextRetrieval, directory_of("blip_2_itm"))
    x = inputs_of(directory_of("blip_2_itm"), pictures[0], TEXTS[1])
    x.pop("token_type_ids")
    expected = model(**x, use_image_text_matching_head=True).logits_per_image.softmax(1)
    directory = tmp_path / "blip_2"
    directory.symlink_to(directory_of("blip_2_itm"))
    scorer = load(directory)
    if placed:
        scorer.model.config.image_token_index = 5
    close(scorer.score_pairs([[pictures[0]]], [TEXTS[1]]), expected)


@torch.no_grad()
def test_flava_is_its_pre_training_forward(directory_of, scorer_of, pictures):
    """The call of the library wants masked inputs and a codebook; the head alone does not."""
    directory = directory_of("flava_itm")
    model = reference(tr.FlavaForPreTraining, directory)
    x = inputs_of(directory, pictures[0], TEXTS[1])
    patches = (16 // 8) ** 2
    out = model(
        **x,
        input_ids_masked=x["input_ids"],
        bool_masked_pos=torch.zeros(1, patches, dtype=torch.bool),
        codebook_pixel_values=torch.zeros(1, 3, 16, 16),
        skip_unmasked_multimodal_encoder=False,
    )
    close(
        scorer_of("flava_itm").score_pairs([[pictures[0]]], [TEXTS[1]]), out.itm_logits.softmax(1)
    )


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vilt_itm", tr.ViltForImageAndTextRetrieval),
        ("bridgetower_itm", tr.BridgeTowerForImageAndTextRetrieval),
    ],
)
def test_plain_heads_are_their_logits(name, kind, directory_of, scorer_of, pictures):
    model, scorer = reference(kind, directory_of(name)), scorer_of(name)
    x = {
        **scorer.image_processor(images=[pictures[2]], return_tensors="pt"),
        **tr.AutoTokenizer.from_pretrained(directory_of(name))([TEXTS[1]], return_tensors="pt"),
    }
    logits = model(**x).logits
    expected = logits.softmax(1) if scorer.scored == "probability" else logits
    close(scorer.score_pairs([[pictures[2]]], [TEXTS[1]]), expected)


@torch.no_grad()
def test_nlvr2_reads_the_left_picture_first(directory_of, scorer_of, pictures):
    model = reference(tr.ViltForImagesAndTextClassification, directory_of("vilt_nlvr2"))
    scorer = scorer_of("vilt_nlvr2")
    left, right = pictures[1], pictures[3]
    pixels = scorer.image_processor(images=[left, right], return_tensors="pt")
    tokens = tr.AutoTokenizer.from_pretrained(directory_of("vilt_nlvr2"))([TEXTS[0]])
    logits = model(
        pixel_values=pixels["pixel_values"][None],
        pixel_mask=pixels["pixel_mask"][None],
        **{name: torch.tensor(value) for name, value in tokens.items()},
    ).logits
    close(scorer.score_pairs([[left, right]], [TEXTS[0]]), logits.softmax(1))
    swapped = scorer.score_pairs([[right, left]], [TEXTS[0]])
    assert (swapped - logits.softmax(1)).abs().max() > 1e-4


def test_heads_name_their_columns(scorer_of):
    assert scorer_of("vilt_nlvr2").labels == ("False", "True")
    assert scorer_of("vilt_nlvr2").positive == 1
    assert scorer_of("vilt_entailment").labels == ("entailment", "neutral", "contradiction")
    assert scorer_of("vilt_entailment").positive == 0
    assert scorer_of("vilt_itm").scored == "logit"
    assert scorer_of("bridgetower_itc").scored == "cosine"


def test_bridgetower_contrastive_is_a_cosine(scorer_of, pictures):
    scores = scorer_of("bridgetower_itc").score_pairs([[p] for p in pictures], TEXTS)
    assert scores.abs().max() <= 1 + 1e-5


def test_a_square_crop_of_bridgetower_is_read(directory_of, scorer_of, tmp_path, pictures):
    """transformers' processor reads the shortest edge alone; published files name both sides."""
    file = directory_of("bridgetower_itm") / "preprocessor_config.json"
    assert json.loads(file.read_text())["crop_size"] == {"height": 16, "width": 16}
    assert scorer_of("bridgetower_itm").image_processor.crop_size["shortest_edge"] == 16


def test_vilt_looks_at_every_patch(tmp_path, pictures):
    """A configuration with fewer patches than there are would choose among them at random."""
    directory = tiny_pairs.vilt(
        tmp_path / "vilt", tr.ViltForImageAndTextRetrieval, max_image_length=2
    )
    scorer = load(directory)
    first = scorer.score_pairs([[pictures[3]]], ["a cat"])
    for _ in range(5):
        close(scorer.score_pairs([[pictures[3]]], ["a cat"]), first)


def test_a_model_without_a_head_is_refused(directory_of):
    with pytest.raises(UserError, match=r"CLIPModel, which does not score .*--encoder"):
        load(directory_of("clip"))


def test_a_wrong_number_of_pictures_is_refused(scorer_of, pictures):
    with pytest.raises(UserError, match="reads 2 images with each text, not 1"):
        scorer_of("vilt_nlvr2").score_pairs([[pictures[0]]], ["a"])
