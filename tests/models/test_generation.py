"""Tokens that a model wrote, and their probability, by hand."""

from types import SimpleNamespace

import pytest
import torch

from zeroshot.errors import UserError
from zeroshot.models.base import Answer
from zeroshot.models.vlm.generation import generate_texts, new_tokens, unique_answers
from zeroshot.models.vlm.image_text_inputs import same_shape_batches

END, PAD = 3, 0
CHANCES = torch.tensor([0.1, 0.2, 0.3, 0.4])  # of tokens 0..3, at every step


def output(sequences, steps, beams=None):
    rows = 2 if beams is None else int(max(map(max, beams))) + 1
    logits = tuple(CHANCES.log().expand(rows, 4) for _ in range(steps))
    beams = None if beams is None else torch.tensor(beams)
    return SimpleNamespace(sequences=torch.tensor(sequences), logits=logits, beam_indices=beams)


@pytest.mark.parametrize("prompt", [[], [2, 2, 2]])
def test_the_end_counts_and_what_fills_up_does_not(prompt):
    """The prompt may be in the sequences or not; the end is part of the text's probability."""
    out = output([[*prompt, 2, END, PAD], [*prompt, 1, 1, 2]], steps=3)
    tokens, chances = new_tokens(out, [END])
    assert tokens.tolist() == [[2, END, PAD], [1, 1, 2]]
    assert chances.tolist() == pytest.approx([0.3 * 0.4, 0.2 * 0.2 * 0.3])
    _, mean = new_tokens(out, [END], mean=True)
    assert mean.tolist() == pytest.approx([(0.3 * 0.4) ** (1 / 2), (0.2 * 0.2 * 0.3) ** (1 / 3)])


def test_an_end_that_is_the_padding_counts_once():
    _, chances = new_tokens(output([[2, END, END], [1, 1, END]], steps=3), [END])
    assert chances.tolist() == pytest.approx([0.3 * 0.4, 0.2 * 0.2 * 0.4])


def test_without_an_end_every_token_counts():
    _, chances = new_tokens(output([[2, 3], [1, 1]], steps=2), [])
    assert chances.tolist() == pytest.approx([0.3 * 0.4, 0.2 * 0.2])


def test_beams_may_be_shorter_than_the_steps_that_found_them():
    """Four steps were made, the longest text that came back has two tokens."""
    out = output([[7, 2, 1], [7, 3, 0]], steps=4, beams=[[0, 1, -1, -1], [1, -1, -1, -1]])
    tokens, chances = new_tokens(out, [END])
    assert tokens.tolist() == [[2, 1], [3, 0]]
    assert chances.tolist() == pytest.approx([0.3 * 0.2, 0.4])


def test_of_equal_texts_the_more_probable_stays():
    answers = [Answer("a", 0.1), Answer("b", 0.3), Answer("a", 0.2)]
    assert unique_answers(answers) == (Answer("b", 0.3), Answer("a", 0.2))


def test_rows_of_equal_shapes_run_together_in_bounds():
    rows = [{"x": torch.full((1, n), i)} for i, n in enumerate([2, 3, 2, 2, 3])]
    batches = [
        (places, batch["x"].tolist()) for places, batch in same_shape_batches(rows, batch_size=2)
    ]
    assert batches == [
        ([0, 2], [[0, 0], [2, 2]]),
        ([3], [[3, 3]]),
        ([1, 4], [[1, 1, 1], [4, 4, 4]]),
    ]


def test_no_room_is_said():
    row = {"input_ids": torch.ones(1, 5, dtype=torch.long)}
    with pytest.raises(UserError, match="a text of 5 tokens leaves no room"):
        generate_texts(lambda **how: None, [row], str, [], max_new_tokens=3, positions=5)
