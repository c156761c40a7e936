"""Choosing among candidates: folds, intervals, ensembles, nested loops, images to label next."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.tuning.folds import class_weights, fold_count, stratified_folds
from zeroshot.tuning.greedy_ensemble import fit_temperatures, select_greedily
from zeroshot.tuning.intervals import balanced, estimate, p_not_better, standard_error
from zeroshot.tuning.selection import (
    ENSEMBLE,
    ChoiceInterruptedError,
    Configuration,
    evaluate,
)
from zeroshot.tuning.suggestions import SHARPNESS, suggest


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy(labels, classes, strength, generator):
    """Logits that know the class, more or less."""
    logits = torch.randn(len(labels), classes, generator=generator)
    logits[torch.arange(len(labels)), labels] += strength
    return logits


def known(name, logits, **more):
    """A candidate that learns nothing."""
    return Configuration(name, lambda train, test: logits[test], learns=False, **more)


# Folds


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(2, 5), st.integers(0, 9))
def test_folds_are_stratified(classes, count, seed):
    labels = torch.tensor(classes)
    fold = stratified_folds(labels, count, seeded(seed))
    for label in labels.unique():
        own = fold[labels == label]
        if len(own) == 1:
            assert own.tolist() == [-1]
        else:
            sizes = own.bincount(minlength=count)
            assert sizes.max() - sizes.min() <= 1
    sizes = fold[fold >= 0].bincount(minlength=count)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("sizes", "count"),
    [([1, 1, 1], 0), ([2, 2], 2), ([4, 4, 4], 4), ([30, 2, 9], 5), ([1, 3, 3], 3), ([1, 1, 9], 0)],
)
def test_as_many_folds_as_rows_of_a_usual_class(sizes, count):
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate(sizes)])
    assert fold_count(labels) == count


def test_each_class_weighs_the_same():
    labels = torch.tensor([0, 0, 0, 1, 3, 3])
    assert class_weights(labels).tolist() == pytest.approx([1 / 9] * 3 + [1 / 3] + [1 / 6] * 2)
    hits = torch.tensor([1.0, 0, 0, 1, 1, 0])
    assert balanced(hits, labels) == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)


# Intervals


def test_standard_error_by_hand():
    labels = torch.tensor([0, 0, 1, 1])
    hits = torch.tensor([1.0, 0, 1, 1])
    # deviations .5, -.5, 0, 0 with 2 degrees of freedom: variance .25; weights 1/4 each
    assert standard_error(hits, labels) == pytest.approx(math.sqrt(0.25 * 4 / 16))
    assert standard_error(hits[:1], labels[:1]) == math.inf
    both = torch.stack([hits, hits.flip(0)])
    assert standard_error(both, labels).tolist() == [standard_error(x, labels) for x in both]


@pytest.mark.parametrize(
    ("rate", "rows", "further"), [(0.5, 40, 400), (0.9, 60, 60), (0.98, 90, 9)]
)
def test_the_interval_covers_further_rows(rate, rows, further):
    generator = seeded(1)
    labels = torch.arange(rows) % 3
    covered = 0
    for _ in range(400):
        hits = (torch.rand(rows, generator=generator) < rate).double()
        later = (torch.rand(further, generator=generator) < rate).double()
        found = estimate(hits, labels, further)
        covered += found.low <= balanced(later, torch.arange(further) % 3) <= found.high
    assert covered >= 0.93 * 400


def test_the_interval_is_wider_for_fewer_rows_and_never_empty():
    labels = torch.arange(30) % 3
    right = torch.ones(30, dtype=torch.float64)
    found = estimate(right, labels)
    assert found.high == 1
    assert 0.6 < found.low < 0.9
    assert estimate(right, labels, 10).low < found.low < estimate(right, labels, 10_000).low


def test_flipped_signs_against_all_of_them():
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    gains = torch.tensor([1.0, 1, 0, 1, 0.5, -1, 1, 0])
    weighted = gains.double() * class_weights(labels)
    sums = [
        sum(s * w for s, w in zip(signs, weighted.tolist(), strict=True))
        for signs in itertools.product((1, -1), repeat=len(gains))
    ]
    exact = sum(s >= float(weighted.sum()) - 1e-12 for s in sums) / len(sums)
    assert p_not_better(gains, labels, seeded()) == pytest.approx(exact, abs=0.02)
    assert p_not_better(torch.zeros(8), labels, seeded()) == 1


# Ensembles


def test_temperature_is_the_minimum_of_the_loss():
    generator = seeded(2)
    labels = torch.randint(0, 3, (50,), generator=generator)
    logits = torch.stack([noisy(labels, 3, s, generator) * f for s, f in ((1, 1), (2, 100))])
    for own, found in zip(logits, fit_temperatures(logits, labels).tolist(), strict=True):

        def loss(log_t, own=own):
            log_p = (own.double() / math.exp(log_t)).log_softmax(1)
            smooth = torch.full_like(log_p, 1 / 52 / 3)
            smooth[torch.arange(50), labels] += 51 / 52
            return float(-((smooth * log_p).sum(1) * class_weights(labels)).sum())

        expected = minimize_scalar(loss, bounds=(-8, 12), method="bounded").x
        assert math.log(found) == pytest.approx(expected, abs=1e-3)


def test_greedy_steps_by_hand():
    labels = torch.tensor([0, 0, 1, 1])
    left = torch.tensor([[4.0, 0], [4, 0], [1, 0], [1, 0]])  # knows class 0
    right = torch.tensor([[0.0, 1], [0, 1], [0, 4], [0, 4]])  # knows class 1
    useless = torch.tensor([[0.0, 3], [0, 3], [3, 0], [3, 0]])
    found = select_greedily([useless, left, right], labels)
    assert found.members == (1, 2)
    assert sum(found.weights) == pytest.approx(1)
    answers = found.probabilities({1: left, 2: right}).argmax(1)
    assert answers.tolist() == labels.tolist()


def test_a_perfect_member_stays_alone():
    labels = torch.tensor([0, 1, 2] * 5)
    perfect = 10.0 * torch.eye(3)[labels]
    found = select_greedily([torch.zeros(15, 3), perfect], labels)
    assert (found.members, found.weights) == ((1,), (1.0,))


# The two loops


def test_the_outer_loop_is_honest_where_nothing_can_be_learned():
    generator = seeded(3)
    labels = torch.arange(60) % 4
    reached, best = [], []
    for _ in range(6):
        noise = [
            known(f"noise {i}", torch.randn(60, 4, generator=generator), cost=1) for i in range(25)
        ]
        found = evaluate(noise, labels, plain=0, ensembles=False, operations=25 * 15)
        reached.append(found.accuracy.value)
        best.append(max(t.accuracy for t in found.selection.tried if t.share == 1))
        assert found.accuracy.low < 0.25 < found.accuracy.high
    assert min(best) > 0.33  # chance is 0.25: the best of many looks good
    assert abs(sum(reached) / 6 - 0.25) < 0.06  # standard error 0.023


def test_the_simplest_of_equals_is_chosen():
    generator = seeded(4)
    labels = torch.arange(80) % 4
    good = noisy(labels, 4, 2, generator)
    later = [known(f"copy {i}", good + 0.01 * noisy(labels, 4, 0, generator)) for i in range(5)]
    found = evaluate([known("simple", good), *later], labels, plain=0)
    assert found.selection.single == 0


def test_a_better_candidate_wins_and_a_hopeless_one_stops_early():
    generator = seeded(5)
    labels = torch.arange(100) % 5
    plain, better, hopeless = (noisy(labels, 5, s, generator) for s in (0.5, 3, 0))
    found = evaluate(
        [known("plain", plain), known("hopeless", hopeless), known("better", better)],
        labels,
        plain=0,
        ensembles=False,
    )
    assert found.selection.single == 2
    assert found.p < 0.01
    assert found.gain == pytest.approx(found.accuracy.value - found.plain.value)
    share = {t.name: t.share for t in found.selection.tried}
    assert share["better"] == 1
    assert share["hopeless"] < 1


def test_the_default_is_left_for_what_is_better_and_not_for_the_luckiest_of_many():
    """Few labels, all candidates far above plain zero-shot: each test against that succeeds."""
    labels = torch.arange(40) % 4
    stayed = 0
    for seed in range(6):
        generator = seeded(seed)
        plain, *equals = (noisy(labels, 4, s, generator) for s in (0, *[1.5] * 20))
        candidates = [known(f"equal {i}", logits) for i, logits in enumerate(equals)]
        candidates.insert(1, known("plain", plain))
        found = evaluate(candidates, labels, plain=1, ensembles=False)
        assert found.p < 0.05
        assert found.better == (found.selection.single != 0)
        stayed += found.selection.single == 0
        best = known("best", noisy(labels, 4, 5, generator))
        found = evaluate([*candidates, best], labels, plain=1, ensembles=False)
        assert found.better
    assert stayed >= 5


def test_an_ensemble_wins_where_members_complement_each_other():
    generator = seeded(6)
    labels = torch.arange(400) % 4
    members = [known(f"member {i}", noisy(labels, 4, 1.2, generator)) for i in range(6)]
    found = evaluate(members, labels, plain=0)
    assert found.selection.single is None
    assert len(found.selection.ensemble.members) > 3
    single = next(t for t in found.selection.tried if t.name != ENSEMBLE)
    assert found.accuracy.value > single.accuracy + 0.05
    assert found.probabilities.sum(1).tolist() == pytest.approx([1] * 400)


def test_each_fit_is_made_once_and_never_sees_the_rows_that_it_scores():
    labels = torch.arange(40) % 4
    seen: list[tuple[frozenset[int], frozenset[int]]] = []

    def fit(train: Tensor, test: Tensor) -> Tensor:
        assert not set(train.tolist()) & set(test.tolist())
        seen.append((frozenset(train.tolist()), frozenset(test.tolist())))
        return torch.eye(4)[labels[test]] + torch.rand(len(test), 4, generator=seeded(7))

    plain = known("plain", torch.zeros(40, 4))
    found = evaluate([Configuration("fitted", fit), plain], labels, plain=1)
    assert found.folds == 5
    curve = 4 * 5  # four points of five folds
    assert len(seen) - curve == found.repeats * (5 + 5 * 4)  # (i out, j scored), i = j and i != j
    assert len(set(seen[:-curve])) == len(seen) - curve


def test_outer_rows_decide_nothing():
    """Turning the labels of one outer fold changes no choice that is scored on it."""
    generator = seeded(8)
    labels = torch.arange(90) % 3
    logits = [noisy(labels, 3, s, generator) for s in (1.0, 1.1, 1.2)]
    fold = stratified_folds(labels, 5, torch.Generator().manual_seed(0)) == 0
    turned = torch.where(fold, (labels + 1) % 3, labels)

    def hits(own):
        found = evaluate(
            [known(str(i), x) for i, x in enumerate(logits)], own, plain=0, ensembles=False
        )
        return found

    a, b = hits(labels), hits(turned)
    # A row's answer is right under one of the two labellings at most.
    if a.repeats == b.repeats == 1:
        assert bool((a.held_out[fold] + b.held_out[fold] <= 1).all())


def test_two_rows_a_class_measure_the_first_candidate_and_choose_nothing():
    generator = seeded(9)
    labels = torch.arange(12) % 6
    first, plain, perfect = (noisy(labels, 6, s, generator) for s in (1, 0, 30))
    found = evaluate(
        [known("first", first), known("plain", plain), known("perfect", perfect)], labels, plain=1
    )
    assert (found.folds, found.selection.single) == (2, 0)
    assert {t.name for t in found.selection.tried} == {"first", "plain", ENSEMBLE}


@pytest.mark.parametrize("labels", [[0, 1, 2, 3] * 2, [*range(12)], [0, 0, 1, 1]])
def test_too_few_rows_are_refused(labels):
    labels = torch.tensor(labels)
    with pytest.raises(UserError, match="too few to measure anything"):
        evaluate([known("one", torch.zeros(len(labels), 12))], labels, plain=0)


def test_the_budget_takes_repeats_first_and_then_the_costliest():
    labels = torch.arange(40) % 4
    logits = noisy(labels, 4, 1, seeded())
    costs = {"first": 5.0, "plain": 0.0, "cheap": 1.0, "costly": 100.0}
    candidates = [known(name, logits, cost=cost) for name, cost in costs.items()]
    free = evaluate(candidates, labels, plain=1)
    assert (free.repeats, free.left_out) == (3, ())
    tight = evaluate(candidates, labels, plain=1, operations=106 * 15 * 2)
    assert (tight.repeats, tight.left_out) == (2, ())
    tighter = evaluate(candidates, labels, plain=1, operations=106 * 15 / 2)
    assert (tighter.repeats, tighter.left_out) == (1, ("costly",))


def test_the_same_seed_gives_the_same_evaluation():
    labels = torch.arange(60) % 3
    candidates = [known(str(s), noisy(labels, 3, s, seeded(10))) for s in (0.5, 0.7, 0.9)]
    a, b = (evaluate(candidates, labels, plain=0, seed=4) for _ in range(2))
    assert (a.selection, a.accuracy, a.p) == (b.selection, b.accuracy, b.p)


def test_the_curve_rises_where_labels_help():
    generator = seeded(11)
    labels = torch.arange(200) % 4
    centres = torch.randn(4, 6, generator=generator)
    rows = centres[labels] + 2 * torch.randn(200, 6, generator=generator)

    def nearest_mean(train: Tensor, test: Tensor) -> Tensor:
        means = torch.stack([rows[train][labels[train] == c].mean(0) for c in range(4)])
        return -torch.cdist(rows[test], means)

    plain = known("plain", torch.zeros(200, 4))
    found = evaluate([Configuration("mean", nearest_mean), plain], labels, plain=1)
    sizes = [point[0] for point in found.curve]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 40
    assert found.curve[-1][1] > found.curve[0][1]


# Ctrl-C


def interrupted(labels, candidates, after, **more):
    """What is kept if Ctrl-C comes with the step of progress of this number."""
    steps = []

    def progress(name, best, done):
        steps.append(done)
        if len(steps) == after:
            raise KeyboardInterrupt

    with pytest.raises(ChoiceInterruptedError) as caught:
        evaluate(candidates, labels, plain=0, progress=progress, **more)
    return caught.value


def test_an_interrupted_choice_keeps_the_best_so_far():
    generator = seeded(5)
    labels = torch.arange(100) % 5
    plain, better, hopeless = (noisy(labels, 5, s, generator) for s in (0.5, 3, 0))
    candidates = [known("plain", plain), known("hopeless", hopeless), known("better", better)]
    whole = evaluate(candidates, labels, plain=0, ensembles=False)
    rounds = whole.folds * whole.repeats
    for after in (1, 2, rounds):
        found = interrupted(labels, candidates, after)
        assert found.selection.single == 2
        assert found.done == pytest.approx(after / rounds)
        assert {t.name for t in found.selection.tried} == {"plain", "hopeless", "better"}
    ended = whole.selection.ensemble
    assert found.selection.ensemble.temperatures == pytest.approx(ended.temperatures)


def test_an_ensemble_that_was_chosen_outlives_an_interrupted_measurement():
    generator = seeded(6)
    labels = torch.arange(400) % 4
    logits = [noisy(labels, 4, 1.2, generator) for _ in range(6)]
    made = []

    def fit(train: Tensor, test: Tensor) -> Tensor:
        made.append(len(test))
        if len(made) == 9:  # five folds chose it, and the outer loop began
            raise KeyboardInterrupt
        return logits[0][test]

    first = Configuration("first", fit)
    with pytest.raises(ChoiceInterruptedError) as caught:
        evaluate([first, *(known(str(i), x) for i, x in enumerate(logits[1:]))], labels, plain=0)
    assert len(caught.value.selection.ensemble.members) > 3
    assert caught.value.done == 1


@pytest.mark.parametrize(("calls", "single", "done"), [(0, 0, 0), (7, 1, 0.2), (30, 1, 1)])
def test_ctrl_c_at_any_fit(calls, single, done):
    """Before anything was compared, during the choice, and while it is measured."""
    labels = torch.arange(100) % 5
    good = noisy(labels, 5, 3, seeded(5))
    made = []

    def fit(train: Tensor, test: Tensor) -> Tensor:
        if len(made) == calls:
            raise KeyboardInterrupt
        made.append(len(test))
        return good[test]

    poor = Configuration("poor", lambda train, test: torch.zeros(len(test), 5))
    fits = [Configuration(name, fit) for name in ("good", "as good")]
    with pytest.raises(KeyboardInterrupt) as caught:
        evaluate([poor, *fits], labels, plain=0, operations=0)
    found = caught.value
    assert isinstance(found, ChoiceInterruptedError)
    assert found.selection.single == single
    assert found.done == pytest.approx(done, abs=0.41)
    assert (found.done == done) == (done in (0, 1))


# Images to label next


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_suggestions_are_the_greedy_maximum(seed):
    generator = seeded(seed)
    images = torch.nn.functional.normalize(torch.randn(9, 3, generator=generator).double(), dim=1)
    labelled = images[:2] + 0.1
    labelled = torch.nn.functional.normalize(labelled, dim=1)
    p = torch.rand(9, 4, generator=generator).double().softmax(1)
    best = p.sort(1, descending=True).values
    margin = best[:, 0] - best[:, 1]
    weight = (-margin / (2 * margin.mean())).exp()

    def value(chosen):
        own = torch.cat([labelled, images[list(chosen)]])
        return float((weight * (SHARPNESS * ((images @ own.T).amax(1) - 1)).exp()).sum())

    expected = []
    for _ in range(3):
        rest = [i for i in range(9) if i not in expected]
        expected.append(max(rest, key=lambda i: value([*expected, i])))
    found = suggest(images, p, labelled, 3, generator)
    assert value(found) == pytest.approx(value(expected))


def test_suggestions_cover_what_has_no_label():
    generator = seeded(12)
    centres = torch.eye(5).repeat_interleave(20, 0)
    images = centres + 0.05 * torch.randn(100, 5, generator=generator)
    images = torch.nn.functional.normalize(images, dim=1)
    p = torch.full((100, 5), 0.2)
    found = suggest(images, p, images[:1], 4, generator)
    assert sorted(i // 20 for i in found) == [1, 2, 3, 4]
    assert suggest(images[:3], p[:3], images[:0], 9, generator) != []
    assert len(suggest(images[:3], p[:3], images[:0], 9, generator)) == 3
