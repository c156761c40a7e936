"""The guided loop against the equation written as plain loops, without cache, bound or batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from tests.toy import ToyLanguageModel
from zeroshot.decoding import Choice, degeneration_penalty, generate, stream
from zeroshot.errors import UserError


def reference(model, prefix, guide, k, alpha, max_tokens):
    """The score of every candidate from scratch, one row, numpy."""
    table, head = model.table.numpy().astype(np.float64), model.head.numpy().astype(np.float64)

    def states(tokens):
        out = [table[tokens[0]]]
        for token in tokens[1:]:
            out.append(table[token] + 0.5 * out[-1])
        return np.array(out)

    tokens, generated = list(prefix), []
    for _ in range(max_tokens):
        logits = states(tokens)[-1] @ head
        p = np.exp(logits - logits.max())
        p /= p.sum()
        best = None
        for v in np.argsort(-p)[:k]:
            history = states(tokens)
            h = states([*tokens, v])[-1]
            cosines = [h @ j / np.linalg.norm(h) / np.linalg.norm(j) for j in history]
            score = (1 - alpha) * p[v] - alpha * max(cosines) + guide(generated, int(v))
            if best is None or score > best[0]:
                best = (score, int(v))
        if best[1] == model.end:
            break
        tokens.append(best[1])
        generated.append(best[1])
    return generated


def preference(row, generated, token):
    """A guide with visible arithmetic that differs by row, history and candidate."""
    return 0.05 * ((7 * row + 3 * len(generated) + token * token) % 11)


def guide(rows, generated, candidates):
    return torch.tensor(
        [
            [preference(row, tokens, v) for v in column]
            for row, tokens, column in zip(rows, generated, candidates.tolist(), strict=True)
        ]
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 23),
    alpha=st.sampled_from([0.0, 0.1, 0.6, 0.9]),
    lengths=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    guided=st.booleans(),
    width=st.sampled_from([1, 2, 7]),
)
def test_equals_the_equation(seed, k, alpha, lengths, guided, width):
    """With a width of 1 every cosine is 1 or -1: the penalty uses all of its range."""
    model = ToyLanguageModel(seed=seed, width=width)
    prefixes = [[(seed + 5 * i + j) % 20 + 2 for j in range(n)] for i, n in enumerate(lengths)]
    ours = generate(model, prefixes, guide if guided else None, k=k, alpha=alpha, max_tokens=9)
    for row, prefix in enumerate(prefixes):

        def term(generated, v, row=row):
            return preference(row, generated, v) if guided else 0.0

        assert ours[row] == reference(model, prefix, term, k, alpha, 9)


def test_observing_changes_nothing_and_shows_every_candidate():
    model = ToyLanguageModel(seed=3)
    choices: list[Choice] = []
    prefixes = [[0], [4], [0, 6]]
    seen = generate(model, prefixes, guide, k=6, alpha=0.2, max_tokens=7, observe=choices.append)
    assert seen == generate(model, prefixes, guide, k=6, alpha=0.2, max_tokens=7)
    first = choices[0]
    assert first.rows == (0, 1)
    assert first.candidates.shape == first.penalty.shape == (2, 6)
    score = 0.8 * first.probability - 0.2 * first.penalty + first.guide
    assert torch.equal(score.argmax(1), first.chosen)
    assert (first.penalty != 0).all()


def test_tokens_come_one_by_one_as_they_are_chosen():
    """Rows of one length take turns; all together are the texts."""
    model = ToyLanguageModel(seed=3)
    prefixes = [[0], [4], [0, 6]]
    texts = generate(model, prefixes, guide, k=6, alpha=0.2, max_tokens=7)
    tokens = stream(model, prefixes, guide, k=6, alpha=0.2, max_tokens=7)
    first = [next(tokens), next(tokens)]
    assert first == [(0, texts[0][0]), (1, texts[1][0])]
    fed = len(model.fed)
    rest = list(tokens)
    assert len(model.fed) > fed, "the later tokens were not chosen before they were asked for"
    told = [[token for row, token in first + rest if row == i] for i in range(3)]
    assert told == texts


def test_only_contenders_are_fed_to_the_language_model():
    model = ToyLanguageModel(seed=5)
    generate(model, [[0]] * 4, None, k=20, alpha=0.0, max_tokens=6)
    looked_ahead = [rows for rows, _ in model.fed[1:]]
    assert max(looked_ahead) == 4, "with alpha=0 each row has one contender"


@pytest.mark.parametrize(
    ("ahead", "winner", "fed"), [(0.85, 5, 2), (0.8536, 4, 1)], ids=["within reach", "beyond"]
)
def test_who_can_still_win_by_hand(ahead, winner, fed):
    """After two states at a right angle, the worst penalty is 1 and the best -|m| = -.7071.

    At alpha = .5 a candidate that is ahead by less than .5 * 1.7071 = .85355 may yet lose.
    """
    model = ToyLanguageModel(width=2)
    model.head = torch.zeros_like(model.head)
    model.table[2:6] = torch.tensor([[1.0, 0], [0, 1], [1, 0], [-1, -1]])
    model.states = lambda tokens: model.table[tokens]

    def prefer(rows, generated, candidates):
        return torch.where(candidates == 4, ahead, torch.where(candidates == 5, 0.0, -10.0))

    assert generate(model, [[2, 3]], prefer, k=23, alpha=0.5, max_tokens=1) == [[winner]]
    assert sum(rows for rows, _ in model.fed[1:]) == (fed if fed > 1 else 0)


def test_a_lone_contender_that_ends_the_text_is_not_fed():
    model = ToyLanguageModel(seed=2)

    def end(rows, generated, candidates):
        return 10.0 * (candidates == model.end)

    assert generate(model, [[0], [5]], end, k=23, alpha=0.1, max_tokens=4) == [[], []]
    assert model.fed == [(2, 1)], "the prefixes alone"


def test_the_last_token_is_fed_only_where_several_could_win():
    model = ToyLanguageModel(seed=5)
    out = generate(model, [[0]] * 4, None, k=20, alpha=0.0, max_tokens=3)
    assert {len(tokens) for tokens in out} == {3}
    assert [rows for rows, _ in model.fed] == [4, 4, 4]


def test_rows_that_end_leave_the_batch():
    model = ToyLanguageModel(seed=2)

    def end_first_row(rows, generated, candidates):
        wanted = torch.tensor([[row == 0] for row in rows])
        return 10.0 * ((candidates == model.end) & wanted)

    rows_seen = []

    def spy(rows, generated, candidates):
        rows_seen.append(list(rows))
        return end_first_row(rows, generated, candidates)

    out = generate(model, [[0], [5]], spy, k=23, alpha=0.1, max_tokens=4)
    assert out[0] == []
    assert len(out[1]) >= 1
    assert rows_seen[0] == [0, 1]
    assert all(rows == [1] for rows in rows_seen[1:])


def test_penalty_by_hand():
    hidden = torch.tensor([[[3.0, 4.0], [-2.0, 0.0]]])
    context = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-0.6, 0.8]]])
    # cosines: (.6, .8, .28) and (-1, 0, .6)
    assert degeneration_penalty(hidden, context).tolist() == [
        [pytest.approx(0.8), pytest.approx(0.6)]
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 64}, "65 positions"),
    ],
)
def test_options_out_of_range(change, message):
    with pytest.raises(UserError, match=message):
        generate(ToyLanguageModel(), [[0]], **{"k": 3, "alpha": 0.1, "max_tokens": 2} | change)


def test_no_rows_and_an_empty_prefix():
    options = {"k": 3, "alpha": 0.1, "max_tokens": 2}
    assert generate(ToyLanguageModel(), [], **options) == []
    with pytest.raises(UserError, match="empty prefix"):
        generate(ToyLanguageModel(), [[0], []], **options)
