"""Boxes: overlaps by hand, suppression against the loop that defines it."""

import torch

from zeroshot.boxes import area, clip_to_image, intersection_over_smaller, iou, nms


def test_overlaps_by_hand():
    a = torch.tensor([[0.0, 0, 4, 2], [5, 5, 5, 9]])
    b = torch.tensor([[2.0, 1, 6, 3], [0, 0, 4, 2], [9, 9, 8, 8]])
    torch.testing.assert_close(iou(a, b), torch.tensor([[2 / 14, 1, 0], [0, 0, 0]]))
    assert area(b).tolist() == [8, 8, 0]


def test_boxes_are_cut_at_the_picture():
    boxes = torch.tensor([[-3.0, 2, 30, 50], [1, 1, 2, 2]])
    assert clip_to_image(boxes, 20, 10).tolist() == [[0, 2, 20, 10], [1, 1, 2, 2]]


def by_loops(boxes, scores, labels, overlap):
    stays = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        rivals = [j for j in stays if labels[j] == labels[i]]
        if all(float(iou(boxes[i : i + 1], boxes[j : j + 1])) <= overlap for j in rivals):
            stays.append(i)
    return stays


def test_suppression_is_the_loop():
    for seed in range(20):
        torch.manual_seed(seed)
        corner, side = 10 * torch.rand(30, 2), 1 + 6 * torch.rand(30, 2)
        boxes, labels = torch.cat([corner, corner + side], 1), torch.randint(0, 3, (30,))
        scores = (torch.rand(30) * 10).round() / 10  # with ties
        for overlap in (0.0, 0.3, 0.7):
            found = nms(boxes, scores, labels, overlap)
            assert found.tolist() == by_loops(boxes, scores.tolist(), labels.tolist(), overlap)


def test_a_part_is_all_of_itself_within_the_whole():
    whole, part, beside = [0.0, 0, 10, 10], [2.0, 2, 4, 4], [9.0, 9, 11, 11]
    boxes = torch.tensor([whole, part, beside])
    expected = torch.tensor([[1, 1, 0.25], [1, 1, 0], [0.25, 0, 1]])
    torch.testing.assert_close(intersection_over_smaller(boxes, boxes), expected)
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.long)
    assert nms(boxes, scores, labels, 0.5, intersection_over_smaller).tolist() == [0, 2]


def test_labels_do_not_suppress_each_other():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4.1]])
    scores, labels = torch.tensor([0.5, 0.9, 0.8]), torch.tensor([0, 1, 1])
    assert nms(boxes, scores, labels, 0.5).tolist() == [1, 0]
    assert nms(boxes[:0], scores[:0], labels[:0], 0.5).tolist() == []
