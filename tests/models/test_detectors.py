"""Detectors against transformers' own calls; labels are encoded once."""

import numpy as np
import pytest
import torch
import transformers as tr
from PIL import Image

from tests.models import tiny
from zeroshot import models
from zeroshot.boxes import center_to_corners
from zeroshot.errors import UserError
from zeroshot.models.base import Detector, Grounder
from zeroshot.models.hf.model_inputs import tokenize

OWLS = ("owlvit", "owlv2")
GROUNDERS = ("grounding_dino", "mm_grounding_dino")
LABELS = ["a cat", "two dogs", "remote"]


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("name", tiny.DETECTORS)
def test_is_one(name, directory_of):
    detector = models.load_detector(f"hf:{directory_of(name)}", device="cpu")
    assert isinstance(detector, Detector)
    assert isinstance(detector, Grounder) == name.endswith("grounding_dino")


@pytest.mark.parametrize("name", tiny.DETECTORS)
def test_boxes_lie_within_the_picture_best_first(name, loaded, pictures):
    detector = loaded(name)
    found = detector.detect(pictures, detector.encode_prompts(LABELS), 0.0)
    for picture, one in zip(pictures, found, strict=True):
        most = torch.tensor([*picture.size, *picture.size])
        assert len(one.boxes) == len(one.scores) == len(one.labels) > 3
        assert ((one.boxes >= 0) & (one.boxes <= most)).all()
        assert (one.scores.diff() <= 0).all()
        assert set(one.labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("name", tiny.DETECTORS)
def test_batched_as_one_by_one(name, loaded, pictures):
    detector = loaded(name)
    images = [*pictures, *(noise(40, 30, seed) for seed in range(6))]
    prompts = detector.encode_prompts(LABELS)
    threshold = 0.05
    for image, found in zip(images, detector.detect(images, prompts, threshold), strict=True):
        alone = detector.detect([image], prompts, threshold)[0]
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.boxes, alone.boxes, atol=2e-2, rtol=1e-3)


def owl_inputs(detector, image):
    length = detector.model.config.text_config.max_position_embeddings
    tokens = tokenize(detector.tokenizer, LABELS, length, "max_length")
    return dict(tokens) | dict(detector.image_processor(images=[image], return_tensors="pt"))


@pytest.mark.parametrize("name", OWLS)
def test_owl_is_transformers(name, loaded):
    detector, image = loaded(name), noise(50, 30)
    with torch.inference_mode():
        theirs = detector.model(**owl_inputs(detector, image))
    logits, boxes = detector.logits([image], detector.encode_prompts(LABELS))
    torch.testing.assert_close(logits, theirs.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(boxes, theirs.pred_boxes, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", OWLS)
def test_boxes_are_scaled_as_transformers_has_them(name, loaded):
    """OWLv2 pads pictures to squares, so that a box's unit is the longer side."""
    detector, image = loaded(name), noise(50, 30)
    with torch.inference_mode():
        theirs = detector.model(**owl_inputs(detector, image))
    post = detector.image_processor.post_process_object_detection(
        theirs, threshold=0.0, target_sizes=[(30, 50)]
    )[0]
    found = detector.detect([image], detector.encode_prompts(LABELS), 0.0)[0]
    most = torch.tensor([50, 30, 50, 30])
    for score, label, box in zip(post["scores"], post["labels"], post["boxes"], strict=True):
        cut = torch.minimum(box.clamp_min(0), most)
        same = (found.labels == label) & ((found.scores - score).abs() < 1e-4)
        assert (found.boxes[same] - cut).abs().amax(1).min() < 1e-2


@pytest.mark.parametrize("name", OWLS)
def test_a_query_image_is_as_transformers_has_it(name, loaded):
    detector, image, query = loaded(name), noise(50, 30), noise(24, 24, seed=1)
    process = detector.image_processor
    with torch.inference_mode():
        theirs = detector.model.image_guided_detection(
            pixel_values=process(images=[image], return_tensors="pt")["pixel_values"],
            query_pixel_values=process(images=[query], return_tensors="pt")["pixel_values"],
        )
    logits, boxes = detector.logits([image], detector.encode_examples([query]))
    torch.testing.assert_close(logits, theirs.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(boxes, theirs.target_pred_boxes, atol=1e-5, rtol=1e-5)


def omdet_inputs(detector, images, labels):
    """As `OmDetTurboProcessor`, which needs torchvision."""
    length = {"padding": "max_length", "truncation": True, "max_length": 24}
    task = detector.tokenizer(["Detect " + ", ".join(labels) + "."], return_tensors="pt", **length)
    classes = detector.tokenizer(labels, return_tensors="pt", **length)
    count = len(images)
    return {
        "pixel_values": detector.image_processor(images=images, return_tensors="pt")[
            "pixel_values"
        ],
        "classes_input_ids": classes["input_ids"].repeat(count, 1),
        "classes_attention_mask": classes["attention_mask"].repeat(count, 1),
        "tasks_input_ids": task["input_ids"].repeat(count, 1),
        "tasks_attention_mask": task["attention_mask"].repeat(count, 1),
        "classes_structure": torch.tensor([len(labels)] * count),
    }


def test_omdet_turbo_is_transformers(loaded):
    detector, images = loaded("omdet_turbo"), [noise(50, 30), noise(40, 44, 1)]
    labels = ["cat", "a dog"]
    (task,) = detector.encode_prompts(labels)
    with torch.inference_mode():
        theirs = detector.model(**omdet_inputs(detector, images, labels))
    logits, boxes = detector.logits(images, task)
    torch.testing.assert_close(logits, theirs.decoder_class_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(boxes, theirs.decoder_coord_logits, atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.01
    best = detector.detect(images, [task], 0.0)[0]
    scores, place = logits[0].sigmoid().flatten().max(0)
    assert best.scores[0] == scores
    assert best.labels[0] == place % 2
    box = center_to_corners(boxes[0][place // 2][None]) * torch.tensor([50, 30, 50, 30])
    most = torch.tensor([50.0, 30, 50, 30])
    torch.testing.assert_close(best.boxes[0], torch.minimum(box[0].clamp_min(0), most))


def test_labels_of_omdet_turbo_that_do_not_fit_are_another_task(loaded):
    detector = loaded("omdet_turbo")
    labels = ["cat", "a dog", "bird", "zebra", "sofa", "my fox"]
    tasks = detector.encode_prompts(labels)
    assert len(tasks) > 1
    assert [task.first for task in tasks] == [
        sum(len(one.classes) for one in tasks[:i]) for i in range(len(tasks))
    ]
    assert sum(len(task.classes) for task in tasks) == len(labels)
    found = detector.detect([noise(50, 30)], tasks, 0.0)[0]
    assert set(found.labels.tolist()) == set(range(6))
    with pytest.raises(UserError, match="tokens, but the model reads 24"):
        detector.encode_prompts(["a label that is far too long for it"])
    with pytest.raises(UserError, match="takes no query image"):
        detector.encode_examples([noise(24, 24)])


def test_grounding_dino_takes_no_query_image(loaded):
    with pytest.raises(UserError, match="takes no query image"):
        loaded("grounding_dino").encode_examples([noise(24, 24)])


def grounding_inputs(detector, image, text):
    return dict(detector.tokenizer(text, return_tensors="pt")) | dict(
        detector.image_processor(images=[image], return_tensors="pt")
    )


@pytest.mark.parametrize("name", GROUNDERS)
def test_grounding_dino_is_transformers(name, loaded):
    detector, image = loaded(name), noise(50, 30)
    (reading,) = detector.encode_prompts(LABELS)
    with torch.inference_mode():
        theirs = detector.model(**grounding_inputs(detector, image, "a cat. two dogs. remote."))
    logits, boxes = detector.logits([image], reading)
    torch.testing.assert_close(logits, theirs.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(boxes, theirs.pred_boxes, atol=1e-5, rtol=1e-5)
    owned = [owner for owner in reading.owners if owner >= 0]
    assert owned == sorted(owned)
    assert set(owned) == {0, 1, 2}


@pytest.mark.parametrize("name", GROUNDERS)
def test_a_label_scores_as_its_best_token(name, loaded):
    detector, image = loaded(name), noise(50, 30)
    (reading,) = detector.encode_prompts(LABELS)
    logits, boxes = detector.logits([image], reading)
    found = detector.detect([image], [reading], 0.0)[0]
    for query in range(3):
        for label in range(3):
            tokens = [t for t, owner in enumerate(reading.owners) if owner == label]
            best = float(logits[0, query, tokens].sigmoid().max())
            assert (found.scores[found.labels == label] - best).abs().min() < 1e-5
    box = center_to_corners(boxes[0])[:1] * torch.tensor([50, 30, 50, 30])
    cut = torch.minimum(box.clamp_min(0), torch.tensor([50.0, 30, 50, 30]))
    assert (found.boxes - cut).abs().amax(1).min() < 1e-3


@pytest.mark.parametrize("name", GROUNDERS)
def test_labels_do_not_see_each_other_in_the_backbone(name, loaded):
    """The ids that part labels are the tokenizer's own, not those of another vocabulary."""
    detector = loaded(name)
    (one,) = detector.encode_prompts(["a cat", "two dogs"])
    (other,) = detector.encode_prompts(["a cat", "zebra"])
    mine = [t for t, owner in enumerate(one.owners) if owner == 0]
    torch.testing.assert_close(one.states[:, mine], other.states[:, mine], atol=1e-5, rtol=1e-5)
    (longer,) = detector.encode_prompts(["a cat on two dogs"])
    assert (one.states[:, mine] - longer.states[:, mine]).abs().max() > 1e-2


def test_many_labels_are_spread_over_texts(loaded):
    detector = loaded("grounding_dino")
    labels = [f"thing {a}{b}" for a in "abcd" for b in "efgh"]
    readings = detector.encode_prompts(labels)
    assert len(readings) > 1
    assert all(len(reading.owners) <= 48 for reading in readings)
    assert {o for reading in readings for o in reading.owners} == {-1, *range(16)}
    found = detector.detect([noise(50, 30)], readings, 0.0)[0]
    assert set(found.labels.tolist()) == set(range(16))


def test_a_sentence_is_grounded_in_its_words(loaded):
    detector, image, sentence = loaded("grounding_dino"), noise(50, 30), "A cat lies on the sofa"
    for phrase in detector.ground([image], sentence, 0.0, 0.6)[0]:
        words = [sentence[begin:end] for begin, end in phrase.spans]
        assert all(word and word.strip() == word for word in words)
        assert all(0 <= a < b <= len(sentence) for a, b in phrase.spans)
    everything = detector.ground([image], sentence, 0.0, 0.0)[0]
    assert {phrase.spans for phrase in everything} == {((0, len(sentence)),)}
    scores = [phrase.score for phrase in everything]
    assert scores == sorted(scores, reverse=True)
    assert len(everything) == 12


def test_what_grounding_dino_cannot_read(loaded):
    detector = loaded("grounding_dino")
    with pytest.raises(UserError, match="a period or question mark ends a label"):
        detector.encode_prompts(["a cat. a dog"])
    with pytest.raises(UserError, match="more than 48 tokens"):
        detector.encode_prompts(["word " * 20])
    with pytest.raises(UserError, match="the model reads 48"):
        detector.ground([noise(30, 30)], "word " * 20, 0.1, 0.1)


@pytest.mark.parametrize("name", tiny.DETECTORS)
def test_labels_are_encoded_once(name, loaded, pictures, monkeypatch):
    """However many pictures there are; transformers' pipeline reads each label for each picture."""
    detector, read = loaded(name), []
    inner = detector.model
    places = {
        "owlvit": ["owlvit", "text_model"],
        "owlv2": ["owlv2", "text_model"],
        "omdet_turbo": ["language_backbone", "model"],
    }
    for step in places.get(name, ["model", "text_backbone"]):
        inner = getattr(inner, step)
    handle = inner.register_forward_hook(lambda module, given, out: read.append(out))
    try:
        prompts = detector.encode_prompts(LABELS)
        for _ in range(3):
            detector.detect(pictures, prompts, 0.5)
    finally:
        handle.remove()
    sentences = len(prompts) if name == "omdet_turbo" else 0  # beside the labels themselves
    assert len(read) == 1 + sentences


@pytest.mark.parametrize("name", OWLS)
def test_long_labels_are_refused(name, loaded):
    with pytest.raises(UserError, match="the model reads 16"):
        loaded(name).encode_prompts(["many words " * 5])


def test_models_of_other_kinds_are_refused(directory_of):
    with pytest.raises(UserError, match="is a detector, not a segmenter"):
        models.load_segmenter(str(directory_of("owlvit")), device="cpu")


def test_no_pipeline_of_transformers_finds_more(loaded, directory_of):
    """The library's own pipeline, on the same tiny weights: the same boxes where it keeps any."""
    detector, image = loaded("owlvit"), noise(50, 30)
    if not hasattr(tr, "OwlViTProcessor"):
        pytest.skip("this version of transformers has no OWL-ViT processor")
    logits, _ = detector.logits([image], detector.encode_prompts(LABELS))
    best = logits[0].sigmoid().amax(1)
    found = detector.detect([image], detector.encode_prompts(LABELS), float(best.min()))[0]
    assert len(found.boxes) >= len(best)
