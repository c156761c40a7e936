"""Grounding DINO: boxes for labels, or for the words of a whole sentence.

Liu et al. 2024, "Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object
Detection", ECCV.

The model reads one text with a period after each label, and tells for each box and token how well
they fit. Labels that do not fit into one text are spread over several; in the text backbone tokens
see those of their own label only, in the fusion with the picture they see all of their text. The
text is encoded once: its states stand in for the text backbone while pictures pass. Only pictures
of one size go together, since the model's convolutions see the padding of others.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Detections, Phrase
from zeroshot.models.boxes import clipped, corners

__all__ = ["GroundingDINO", "Reading"]

IMAGES_AT_ONCE = 4
PARTS = (".", "?")
"""What ends a label inside a text."""


@dataclass(frozen=True)
class Reading:
    """A text that was encoded: its tokens, their states, and whose they are."""

    tokens: Any
    states: Float[Tensor, "1 s d"]
    """Of the text backbone."""
    owners: tuple[int, ...]
    """Of each token: the label's place, or -1 for a token that is none's."""
    spans: tuple[tuple[int, int], ...]
    """Where each token is in the text, in characters."""


class GroundingDINO:
    """The model with its tokenizer and preprocessing (`base.Grounder`)."""

    template = "{}"

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.most = int(model.config.max_text_len)
        # transformers has the ids of BERT's own vocabulary here, whatever the tokenizer's are.
        ends = [tokenizer.cls_token_id, tokenizer.sep_token_id]
        ends += tokenizer.convert_tokens_to_ids(list(PARTS))
        model.model.special_tokens = torch.tensor(ends, device=model.device)

    def encode_prompts(self, prompts: Sequence[str]) -> list[Reading]:
        """As `base.Detector`: as many texts as it takes."""
        labels = [self._label(prompt) for prompt in prompts]
        readings, start = [], 0
        while start < len(labels):
            stop = self._as_many_as_fit(labels, start)
            readings.append(self._read(labels[start:stop], start))
            start = stop
        return readings

    def encode_examples(self, examples: Sequence[Image]) -> Any:
        """UserError: the model reads texts."""
        raise UserError(
            "Grounding DINO takes no query image, texts alone; OWL-ViT and OWLv2 take both"
        )

    def detect(
        self, images: Sequence[Image], prompts: list[Reading], threshold: float
    ) -> list[Detections]:
        """As `base.Detector`; a label's score is that of its best token."""
        labels = 1 + max(owner for reading in prompts for owner in reading.owners)
        parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in images]
        for reading in prompts:
            for place, scores, boxes in self._seen(images, reading):
                of_label = scores.new_zeros(len(scores), labels)
                for token, owner in enumerate(reading.owners):
                    if owner >= 0:
                        of_label[:, owner] = torch.maximum(of_label[:, owner], scores[:, token])
                query, label = (of_label >= threshold).nonzero(as_tuple=True)
                parts[place].append((boxes[query], of_label[query, label], label))
        return [
            Detections.within(image.size, *(torch.cat(held) for held in zip(*own, strict=True)))
            for own, image in zip(parts, images, strict=True)
        ]

    def ground(
        self, images: Sequence[Image], sentence: str, threshold: float, word_threshold: float
    ) -> list[list[Phrase]]:
        """As `base.Grounder`; a box's score is that of its best token."""
        reading = self._sentence(sentence)
        found: list[list[Phrase]] = [[] for _ in images]
        for place, scores, boxes in self._seen(images, reading):
            best = scores.amax(1)
            kept = clipped(boxes, *images[place].size)
            for query in torch.argsort(best, descending=True, stable=True).tolist():
                if best[query] < threshold:
                    break
                sure = (scores[query] >= word_threshold).nonzero()[:, 0].tolist()
                tokens = [token for token in sure if reading.owners[token] >= 0]
                left, top, right, bottom = kept[query].tolist()
                found[place].append(
                    Phrase((left, top, right, bottom), float(best[query]), _joined(reading, tokens))
                )
        return found

    def _seen(
        self, images: Sequence[Image], reading: Reading
    ) -> Iterator[tuple[int, Float[Tensor, "q s"], Float[Tensor, "q 4"]]]:
        """Of each picture: its place, scores of boxes and tokens, and boxes in its pixels."""
        sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, image in enumerate(images):
            sizes[image.size].append(place)
        for (width, height), places in sizes.items():
            scale = torch.tensor([width, height, width, height])
            for start in range(0, len(places), IMAGES_AT_ONCE):
                some = places[start : start + IMAGES_AT_ONCE]
                logits, boxes = self.logits([images[p] for p in some], reading)
                for place, own, where in zip(some, logits, boxes, strict=True):
                    yield place, self._of_tokens(own, reading), corners(where) * scale

    def _of_tokens(self, logits: Float[Tensor, "q t"], reading: Reading) -> Float[Tensor, "q s"]:
        """Scores of the text's own tokens; 0 of the special ones and of periods."""
        scores = logits[:, : len(reading.owners)].sigmoid()
        own = torch.tensor([owner >= 0 for owner in reading.owners])
        return scores * own

    def logits(
        self, images: Sequence[Image], reading: Reading
    ) -> tuple[Float[Tensor, "n q t"], Float[Tensor, "n q 4"]]:
        """Of each query: a logit for each token, and its box; pictures of one size."""
        inputs = self.image_processor(images=list(images), return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        tokens = {key: value.expand(len(images), -1) for key, value in reading.tokens.items()}
        with torch.inference_mode(), self._known(reading.states, len(images)):
            seen = self.model(**inputs, **tokens)
        return seen.logits.float().cpu(), seen.pred_boxes.float().cpu()

    @contextlib.contextmanager
    def _known(self, states: Float[Tensor, "1 s d"], count: int) -> Iterator[None]:
        """The model with the states of its text in place of the text backbone."""
        inner = self.model.model
        backbone = inner.text_backbone
        answer = SimpleNamespace(last_hidden_state=states.expand(count, -1, -1))
        del inner.text_backbone
        inner.text_backbone = lambda *given, **more: answer
        try:
            yield
        finally:
            del inner.text_backbone
            inner.text_backbone = backbone

    def _label(self, prompt: str) -> str:
        """As the model was trained: lower case, and a period ends a label."""
        label = " ".join(prompt.lower().split()).rstrip(".").strip()
        if any(part in label for part in PARTS):
            raise UserError(
                f"'{prompt}': a period or question mark ends a label of Grounding DINO; leave it "
                "out, or ground the whole sentence with --sentence"
            )
        return label

    def _as_many_as_fit(self, labels: Sequence[str], start: int) -> int:
        """Where a text that begins with this label has to end."""
        used = 2  # the special tokens around the text
        for place in range(start, len(labels)):
            used += len(self.tokenizer.tokenize(labels[place])) + 1
            if used > self.most:
                if place == start:
                    raise UserError(
                        f"a label of more than {self.most} tokens: '{labels[place][:60]}'"
                    )
                return place
        return len(labels)

    def _read(self, labels: Sequence[str], first: int) -> Reading:
        text = ". ".join(labels) + "."
        ends, at = [], 0
        for label in labels:
            at += len(label) + 2
            ends.append(at)
        tokens, spans = self._tokens(text)
        owners = [
            -1
            if begin == end or text[begin:end] in PARTS
            else first + sum(end > bound for bound in ends)
            for begin, end in spans
        ]
        return Reading(tokens, self._states(tokens), tuple(owners), tuple(spans))

    def _sentence(self, sentence: str) -> Reading:
        """A whole sentence; periods and question marks keep its parts from seeing each other."""
        text = sentence if sentence.rstrip().endswith(PARTS) else f"{sentence.rstrip()}."
        tokens, spans = self._tokens(text.lower() if len(text.lower()) == len(text) else text)
        if len(spans) > self.most:
            raise UserError(
                f"a sentence of {len(spans)} tokens, but the model reads {self.most}; shorten it"
            )
        owners = [-1 if b == e or text[b:e] in PARTS else 0 for b, e in spans]
        return Reading(tokens, self._states(tokens), tuple(owners), tuple(spans))

    def _tokens(self, text: str) -> tuple[Any, list[tuple[int, int]]]:
        held = self.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        spans = [(int(begin), int(end)) for begin, end in held.pop("offset_mapping")[0].tolist()]
        return held.to(self.model.device), spans

    def _states(self, tokens: Any) -> Float[Tensor, "1 s d"]:
        """The text backbone's, each label seeing itself alone, as the model asks of it."""
        heard: list[Tensor] = []

        def listen(module: Any, inputs: Any, output: Any) -> None:
            heard.append(output.last_hidden_state)

        side = 64
        blank = torch.zeros(1, 3, side, side, device=self.model.device, dtype=self.model.dtype)
        handle = self.model.model.text_backbone.register_forward_hook(listen)
        try:
            with torch.inference_mode():
                self.model(pixel_values=blank, **tokens)
        finally:
            handle.remove()
        return heard[0]


def _joined(reading: Reading, tokens: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Spans of tokens, those that follow one another as one."""
    spans: list[tuple[int, int]] = []
    for place, token in enumerate(tokens):
        begin, end = reading.spans[token]
        if place and tokens[place - 1] == token - 1:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    return tuple(spans)
