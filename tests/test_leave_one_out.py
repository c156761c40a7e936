"""NCM, ridge and evidence: loops that leave one shot out, cases by hand, shots of every kind."""

import math

import numpy as np
import pytest
import torch

from zeroshot import metrics
from zeroshot.errors import UserError
from zeroshot.methods import _leave_one_out as left, pipeline
from zeroshot.methods.evidence import Evidence, discriminant, guessed_share, separation
from zeroshot.methods.ncm import NCM
from zeroshot.methods.ridge import Ridge
from zeroshot.methods.stata import StatA
from zeroshot.ops import normalize
from zeroshot.tasks.classification.arrays import score_arrays

OWN = [NCM, Ridge, Evidence]


def world(counts, *, width=40, own=60, text=1.0, image=1.0, images=300, seed=0):
    """Classes in joint rows and in own rows; `text` and `image` say how well each tells them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    classes = len(counts)
    topic, look = random(classes, width), random(classes, own)
    shown = torch.repeat_interleave(torch.arange(classes), torch.tensor(counts))
    truth = torch.randint(classes, (images,), generator=generator)

    def rows(labels):
        joint = text * topic[labels] + 2 * random(len(labels), width)
        mine = image * look[labels] + 2 * random(len(labels), own) + 3
        return normalize(joint), normalize(mine)

    texts = normalize(topic[:, None] + 0.3 * random(classes, 2, width))
    return texts, shown, rows(shown), truth, rows(truth)


def right(scores, truth):
    return float((scores.argmax(1) == truth).double().mean())


def loops(x, y, classes):
    """Cosines of each shot with the class means of the others, number by number."""
    out = np.full((len(x), classes), np.nan)
    for i in range(len(x)):
        rest = [j for j in range(len(x)) if j != i]
        centre = x[rest].mean(0)
        for c in range(classes):
            own = [j for j in rest if y[j] == c]
            if own:
                a, b = x[i] - centre, x[own].mean(0) - centre
                out[i, c] = a @ b / math.sqrt((a @ a) * (b @ b))
    return out


@pytest.mark.parametrize("counts", [(3, 1, 4), (2, 2), (1, 5, 0, 2, 2), (1, 1, 1)])
def test_cosines_without_the_shot_equal_loops(counts):
    _, labels, (_, rows), *_ = world(counts)
    rows = rows.double()
    ours = left.held_out_cosines(rows, labels, len(counts))
    expected = loops(rows.numpy(), labels.numpy(), len(counts))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("counts", "own"), [((4, 3, 5), 60), ((4, 3, 5), 7), ((2, 2), 3)])
@pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])
def test_ridge_without_the_shot_equals_a_fit_without_it(counts, own, ridge):
    """Wide and tall systems; the ridge stays as it is, as a multiple of all shots' eigenvalues."""
    _, labels, (_, rows), *_ = world(counts, own=own)
    x, classes = rows.double(), len(counts)
    fitted = left.fit_ridge(x, labels, classes, [ridge])
    centred = x - x.mean(0)
    lam = ridge * float((centred**2).sum()) / len(x)
    y = torch.eye(classes).double()[labels]

    def solve(rows, targets):
        z, t = rows - rows.mean(0), targets - targets.mean(0)
        return torch.linalg.solve(z.T @ z + lam * torch.eye(x.shape[1]), z.T @ t)

    torch.testing.assert_close(fitted.weight, solve(x, y))
    for i in range(len(x)):
        rest = torch.arange(len(x)) != i
        expected = (x[i] - x[rest].mean(0)) @ solve(x[rest], y[rest])
        torch.testing.assert_close(fitted.held_out[i], expected)


def test_ridge_with_the_least_error_of_left_out_shots():
    _, labels, (_, rows), *_ = world((6, 6, 6), image=0.6)
    y = torch.eye(3)[labels]

    def error(ridge):
        one = left.fit_ridge(rows, labels, 3, [ridge])
        count = len(labels)
        intercept = (count * y.mean(0) - y) / (count - 1)
        return float(((y - one.held_out - intercept) ** 2).sum())

    errors = [error(ridge) for ridge in left.RIDGES]
    assert left.fit_ridge(rows, labels, 3).ridge == left.RIDGES[int(np.argmin(errors))]


def test_spread_by_hand():
    """Wrong classes of the rows: (1, 3) and (0, 2), each 1 from its mean: variance 2 on each."""
    scores = torch.tensor([[9.0, 1.0, 3.0], [0.0, 7.0, 2.0]])
    labels = torch.tensor([0, 1])
    everything = ((scores - scores.mean(1, keepdim=True)) ** 2).sum() / 4
    assert left.spread(scores, labels) == pytest.approx(math.sqrt((4 + everything) / 3))
    two = torch.tensor([[3.0, 1.0], [0.0, 4.0]])  # no wrong class has another beside it
    assert left.spread(two, labels) == pytest.approx(math.sqrt(5.0))
    unknown = torch.tensor([[math.nan, 0.0], [0.0, math.nan]])
    assert left.spread(unknown, labels, 0.1) == pytest.approx(0.1)


def test_margins_by_hand():
    scores = torch.tensor([[5.0, 1.0, 3.0], [0.0, math.nan, 2.0], [4.0, math.nan, 1.0]])
    found = left.margins(scores, torch.tensor([0, 1, 2]))
    assert found[0] == 3.0
    assert found[1].isnan()
    assert found[2] == -3.0


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_likely_scale_is_the_one_that_labels_were_drawn_with(factor):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial((factor * logits).softmax(1), 1, generator=generator)[:, 0]
    assert left.likely_scale(logits, labels, 1.0) == pytest.approx(factor, rel=0.1)
    nothing = logits.scatter(1, labels[:, None], math.nan)
    assert left.likely_scale(nothing, labels, 0.7) == pytest.approx(
        0.7
    )  # no shot has a score of its class
    assert left.likely_scale(-logits, labels, 0.01) < 1e-6  # worse than chance


def test_separation_by_hand():
    """Half the variance between classes: cosine 0.5 with one other image, 0.71 with very many."""
    one, many = separation(0.5, torch.tensor([1, 1_000_000])).tolist()
    assert one == pytest.approx(0.5)
    assert many == pytest.approx(math.sqrt(0.5), rel=1e-5)
    assert separation(0.0, torch.tensor([1, 3])).tolist() == [0.0, 0.0]


def test_discriminant_by_hand():
    a, b = discriminant(torch.tensor([2.0, 0.5]), 1.0, 0.5)
    torch.testing.assert_close(a, torch.tensor([2.0, 0.0]))  # (2 - 0.5) / 0.75; (0.5 - 0.5) / 0.75
    torch.testing.assert_close(b, torch.tensor([0.0, 1.0]))


def test_ncm_by_hand():
    """Means (4, 0) and (0, 2), centre (2, 1): they lie in opposite directions."""
    shots = torch.tensor([[3.0, 0.0], [5.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    images = torch.tensor([[4.0, 0.0], [2.0, 6.0]])
    scored = NCM(scale=10.0).fit(shots, torch.tensor([0, 0, 1, 1]))
    ours = scored.scores(images, torch.ones(2, 1, 2))
    expected = torch.tensor([[10.0, -10.0], [-10 / math.sqrt(5), 10 / math.sqrt(5)]])
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("counts", [(1, 1), (1, 1, 1), (2, 1, 1), (1, 6), (9, 2, 3, 1)])
def test_any_number_of_shots(method, counts):
    texts, labels, (joint, own), _, (images, mine) = world(counts)
    scores = method().fit(joint, labels, own).scores(images, texts, own_images=mine)
    assert scores.isfinite().all()
    assert float(scores.std()) > 0


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("alike", ["all shots", "shots of a class"])
def test_shots_that_are_the_same(method, alike):
    texts, labels, (joint, own), _, (images, mine) = world((3, 3, 3))
    index = torch.zeros(9).long() if alike == "all shots" else labels * 3
    scores = method().fit(joint[index], labels, own[index]).scores(images, texts, own_images=mine)
    assert scores.isfinite().all()


@pytest.mark.parametrize("method", OWN)
def test_order_of_shots_does_not_matter(method):
    texts, labels, (joint, own), _, (images, mine) = world((4, 1, 3))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    a = method().fit(joint, labels, own).scores(images, texts, own_images=mine)
    b = method().fit(joint[order], labels[order], own[order])
    torch.testing.assert_close(b.scores(images, texts, own_images=mine), a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [NCM, Ridge])
def test_texts_say_nothing_to_methods_of_shots(method):
    texts, labels, (joint, own), truth, (images, mine) = world((4, 4, 4), image=2.0)
    fitted = method().fit(joint, labels, own)
    scores = fitted.scores(images, texts, own_images=mine)
    torch.testing.assert_close(fitted.scores(images, -texts, own_images=mine), scores)
    assert right(scores, truth) > 0.9


@pytest.mark.parametrize("method", [NCM, Ridge])
def test_a_class_without_shots_is_refused(method):
    texts, labels, (joint, own), _, (images, mine) = world((2, 0, 3, 0))
    fitted = method().fit(joint, labels, own)
    with pytest.raises(UserError, match="class 1, 3 of 0 to 3 has none"):
        fitted.scores(images, texts, own_images=mine)


@pytest.mark.parametrize("method", OWN)
def test_own_rows_of_both_or_of_neither(method):
    texts, labels, (joint, own), _, (images, mine) = world((2, 2))
    with pytest.raises(UserError, match="own_images and own_shots"):
        method().fit(joint, labels, own).scores(images, texts)
    with pytest.raises(UserError, match="own_images and own_shots"):
        method().fit(joint, labels).scores(images, texts, own_images=mine)
    with pytest.raises(UserError, match="of one width"):
        method().fit(joint, labels, own[:, :5]).scores(images, texts, own_images=mine)
    with pytest.raises(UserError, match="needs the arrays shots and shot_labels"):
        method().scores(images, texts, own_images=mine)


@pytest.mark.parametrize(
    ("text", "image", "count", "above"),
    [
        (0.0, 1.2, 4, -0.02),
        (0.0, 1.2, 8, -0.02),
        (1.2, 0.0, 4, -0.02),
        (1.2, 0.0, 8, -0.02),
        (0.8, 0.8, 1, 0.02),
        (0.8, 0.8, 4, 0.08),
        (1.2, 0.8, 1, -0.01),  # strong texts, and nothing tells what a shot is worth
        (0.3, 1.2, 1, -0.02),
        (0.3, 0.8, 2, 0.03),
    ],
)
def test_evidence_is_as_good_as_the_better_of_both(text, image, count, above):
    """Mean of ten worlds of twelve classes; the margins are those that were seen, rounded down."""
    found = []
    for seed in range(10):
        texts, labels, (joint, own), truth, (images, mine) = world(
            (count,) * 12, images=500, seed=seed, text=text, image=image
        )
        ncm = NCM().fit(joint, labels, own).scores(images, texts, own_images=mine)
        ours = Evidence().fit(joint, labels, own).scores(images, texts, own_images=mine)
        zero_shot = images @ normalize(texts.mean(1)).T
        found.append([right(s, truth) for s in (ours, ncm, zero_shot)])
    ours, ncm, zero_shot = np.mean(found, 0)
    assert ours > max(ncm, zero_shot) + above


def test_a_class_with_fewer_shots_is_no_less_likely():
    """Half of the classes have one shot, the others nine: both are found about as often."""
    shares = []
    for seed in range(10):
        texts, labels, (joint, own), _, (images, mine) = world((1, 9) * 4, text=0, seed=seed)
        scores = Evidence().fit(joint, labels, own).scores(images, texts, own_images=mine)
        shares.append(float((scores.argmax(1) % 2 == 0).double().mean()))
    assert 0.3 < np.mean(shares) < 0.6


def test_a_class_without_shots_is_found_by_its_texts():
    texts, labels, (joint, own), truth, (images, mine) = world(
        (4, 4, 0, 4, 4), text=2.0, image=2.0, images=600
    )
    scores = Evidence().fit(joint, labels, own).scores(images, texts, own_images=mine)
    assert right(scores[truth == 2], truth[truth == 2]) > 0.8
    assert right(scores, truth) > 0.9


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        *((Evidence, counts) for counts in ((2,) * 10, (5,) * 10, (1, 3, 9) * 3)),
        *((method, counts) for method in (NCM, Ridge) for counts in ((8,) * 10, (1, 3, 9) * 3)),
    ],
)
def test_a_softmax_of_the_scores_is_a_probability(method, counts):
    """Confidence is what was right, over ten worlds; with one shot a class nothing can tell."""
    probabilities, truths = [], []
    for seed in range(10):
        texts, labels, (joint, own), truth, (images, mine) = world(
            counts, text=0.5, image=0.9, seed=seed
        )
        scores = method().fit(joint, labels, own).scores(images, texts, own_images=mine)
        probabilities.append(scores.softmax(1).double().numpy())
        truths.append(truth.numpy())
    assert metrics.ece(np.concatenate(probabilities), np.concatenate(truths)) < 0.08


def test_the_guess_of_one_shot():
    assert guessed_share(0.0, 0.0) == 0.05
    assert guessed_share(1.5, 0.5) == pytest.approx(0.15)
    assert guessed_share(9.0, 0.0) == 0.4
    assert guessed_share(9.0, 1.0) == 0.0
    texts, labels, (joint, own), *_ = world((1,) * 8, text=0.0)
    weights = Evidence().fit(joint, labels, own).weights(texts)
    correct = right(joint @ normalize(texts.mean(1)).T, labels)
    assert correct < 0.3
    assert weights.q == pytest.approx(guessed_share(weights.d_z, correct), abs=0.002)
    assert weights.r == 0.0


def test_a_pipeline_and_arrays_carry_own_rows():
    texts, labels, (joint, own), _, (images, mine) = world((3, 3, 3))
    alone = Evidence().fit(joint, labels, own).scores(images, texts, own_images=mine)
    arrays = {
        **{"images": images, "texts": texts, "shots": joint, "shot_labels": labels},
        **{"own_images": 7 * mine, "own_shots": 3 * own},
    }
    scored = score_arrays({k: v.numpy() for k, v in arrays.items()}, "evidence", {})
    np.testing.assert_allclose(scored["scores"], alone.numpy(), rtol=1e-4, atol=1e-4)
    both = pipeline(Evidence(), StatA()).fit(shots=joint, shot_labels=labels, own_shots=own)
    again = StatA().fit(joint, labels).scores(images, texts, initial=alone)
    torch.testing.assert_close(both.scores(images, texts, own_images=mine), again)
