"""Grounding DINO: boxes for labels, or for the words of a whole sentence.

Liu et al. 2024, "Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object
Detection", ECCV. MM-Grounding-DINO (Zhao et al. 2024, arXiv:2401.02361) and LLMDet (Fu et al. 2025,
CVPR) are the same network, trained on more data.

The model reads one text with a period after each label, and scores each box with each token.
Labels that do not fit into one text are spread over several. In the text backbone a token attends
only to its own label; in the fusion with the image it attends to the whole text. The text is
encoded once: its states replace the text backbone while images pass. Only images of one size form
a batch, because the model's convolutions would see the padding of others.
"""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from zeroshot.boxes import center_to_corners, clip_to_image
from zeroshot.errors import UserError
from zeroshot.models.base import Detections, Phrase
from zeroshot.models.hf.model_inputs import image_inputs
from zeroshot.models.hf.prompted_model import PromptedModel
from zeroshot.models.model_checks import check_numbers

__all__ = ["EncodedText", "GroundingDINO"]

IMAGES_AT_ONCE = 4
PARTS = (".", "?")
"""The tokens that end a label inside a text."""
NO_LABEL = -1


@dataclass(frozen=True)
class EncodedText:
    """A text's tokens, their states, and the label that each belongs to."""

    tokens: Any
    states: Float[Tensor, "1 s d"]
    """Output of the text backbone."""
    owners: tuple[int, ...]
    """For each token the index of its label, or `NO_LABEL`."""
    spans: tuple[tuple[int, int], ...]
    """Start and end of each token in the text, in characters."""


class GroundingDINO(PromptedModel):
    """The model with its tokenizer and preprocessing (`base.Grounder`)."""

    preprocessing = "pil.1"
    template = "{}"

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(name, model, image_processor, tokenizer)
        self.max_tokens = int(model.config.max_text_len)
        # transformers has the ids of BERT's own vocabulary here, whatever the tokenizer's are.
        ends = [tokenizer.cls_token_id, tokenizer.sep_token_id]
        ends += tokenizer.convert_tokens_to_ids(list(PARTS))
        model.model.special_tokens = torch.tensor(ends, device=model.device)

    def encode_prompts(self, prompts: Sequence[str]) -> list[EncodedText]:
        """As `base.Detector`; as few texts as possible."""
        labels = [self._label(prompt) for prompt in prompts]
        texts, start = [], 0
        while start < len(labels):
            stop = self._stop(labels, start)
            texts.append(self._encode_labels(labels[start:stop], start))
            start = stop
        return texts

    def encode_examples(self, examples: Sequence[Image]) -> Any:
        """UserError: the model reads texts."""
        raise UserError(
            "Grounding DINO takes no query image, only texts; OWL-ViT and OWLv2 take both"
        )

    def detect(
        self, images: Sequence[Image], prompts: list[EncodedText], threshold: float
    ) -> list[Detections]:
        """As `base.Detector`; a label's score is that of its best token."""
        labels = 1 + max(owner for text in prompts for owner in text.owners)
        parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in images]
        for text in prompts:
            for index, scores, boxes in self._score(images, text):
                by_label = scores.new_zeros(len(scores), labels)
                for token, owner in enumerate(text.owners):
                    if owner != NO_LABEL:
                        by_label[:, owner] = torch.maximum(by_label[:, owner], scores[:, token])
                query, label = (by_label >= threshold).nonzero(as_tuple=True)
                parts[index].append((boxes[query], by_label[query, label], label))
        return [
            Detections.within(
                image.size, *(torch.cat(column) for column in zip(*part, strict=True))
            )
            for part, image in zip(parts, images, strict=True)
        ]

    def ground(
        self, images: Sequence[Image], sentence: str, threshold: float, word_threshold: float
    ) -> list[list[Phrase]]:
        """As `base.Grounder`; a box's score is that of its best token."""
        text = self._encode_sentence(sentence)
        phrases: list[list[Phrase]] = [[] for _ in images]
        for index, scores, boxes in self._score(images, text):
            best = scores.amax(1)
            boxes = clip_to_image(boxes, *images[index].size)
            for query in torch.argsort(best, descending=True, stable=True).tolist():
                if best[query] < threshold:
                    break
                above = (scores[query] >= word_threshold).nonzero()[:, 0].tolist()
                spans = _merge_spans(text, [t for t in above if text.owners[t] != NO_LABEL])
                left, top, right, bottom = boxes[query].tolist()
                phrases[index].append(Phrase((left, top, right, bottom), float(best[query]), spans))
        return phrases

    def _score(
        self, images: Sequence[Image], text: EncodedText
    ) -> Iterator[tuple[int, Float[Tensor, "q s"], Float[Tensor, "q 4"]]]:
        """For each image its index, scores of boxes and tokens, and boxes in its pixels."""
        sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            sizes[image.size].append(index)
        for (width, height), same_size in sizes.items():
            scale = torch.tensor([width, height, width, height])
            for start in range(0, len(same_size), IMAGES_AT_ONCE):
                batch = same_size[start : start + IMAGES_AT_ONCE]
                output = self.logits([images[i] for i in batch], text)
                for index, logits, boxes in zip(batch, *output, strict=True):
                    yield index, _token_scores(logits, text), center_to_corners(boxes) * scale

    def logits(
        self, images: Sequence[Image], text: EncodedText
    ) -> tuple[Float[Tensor, "n q t"], Float[Tensor, "n q 4"]]:
        """For each query a logit of each token, and its box; images of one size."""
        inputs = image_inputs(self.image_processor, images, self.model)
        tokens = {key: value.expand(len(images), -1) for key, value in text.tokens.items()}
        with torch.inference_mode(), self._without_text_backbone(text.states, len(images)):
            output = self.model(**inputs, **tokens)
        return output.logits.float().cpu(), output.pred_boxes.float().cpu()

    @contextlib.contextmanager
    def _without_text_backbone(self, states: Float[Tensor, "1 s d"], count: int) -> Iterator[None]:
        """The model with these states in place of its text backbone."""
        inner = self.model.model
        backbone = inner.text_backbone
        output = SimpleNamespace(last_hidden_state=states.expand(count, -1, -1))
        del inner.text_backbone
        inner.text_backbone = lambda *args, **kwargs: output
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
                f"'{prompt}': a period or question mark ends a label of Grounding DINO; remove it, "
                "or ground the whole sentence with --sentence"
            )
        return label

    def _stop(self, labels: Sequence[str], start: int) -> int:
        """Index after the last label that fits into one text with label `start`."""
        tokens = 2  # the special tokens around the text
        for index in range(start, len(labels)):
            tokens += len(self.tokenizer.tokenize(labels[index])) + 1
            if tokens > self.max_tokens:
                if index == start:
                    raise UserError(
                        f"a label of more than {self.max_tokens} tokens: '{labels[index][:60]}'; "
                        "shorten it"
                    )
                return index
        return len(labels)

    def _encode_labels(self, labels: Sequence[str], first: int) -> EncodedText:
        """Some labels as one text; `first` is the index of the first."""
        text = ". ".join(labels) + "."
        next_starts = list(itertools.accumulate(len(label) + len(". ") for label in labels))
        tokens, spans = self._tokenize(text)
        owners = [
            NO_LABEL
            if begin == end or text[begin:end] in PARTS
            else first + sum(end > next_start for next_start in next_starts)
            for begin, end in spans
        ]
        return EncodedText(tokens, self._states(tokens), tuple(owners), tuple(spans))

    def _encode_sentence(self, sentence: str) -> EncodedText:
        """A whole sentence; its parts between periods and question marks do not see each other."""
        text = sentence if sentence.rstrip().endswith(PARTS) else f"{sentence.rstrip()}."
        tokens, spans = self._tokenize(text.lower() if len(text.lower()) == len(text) else text)
        if len(spans) > self.max_tokens:
            raise UserError(
                f"a sentence of {len(spans)} tokens, but the model reads {self.max_tokens}; "
                "shorten it"
            )
        owners = [NO_LABEL if b == e or text[b:e] in PARTS else 0 for b, e in spans]
        return EncodedText(tokens, self._states(tokens), tuple(owners), tuple(spans))

    def _tokenize(self, text: str) -> tuple[Any, list[tuple[int, int]]]:
        tokens = self.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        spans = [(int(begin), int(end)) for begin, end in tokens.pop("offset_mapping")[0].tolist()]
        return tokens.to(self.model.device), spans

    def _states(self, tokens: Any) -> Float[Tensor, "1 s d"]:
        """The text backbone's states with the attention mask that the model itself makes."""
        states: list[Tensor] = []

        def record(module: Any, inputs: Any, output: Any) -> None:
            states.append(output.last_hidden_state)

        side = 64
        blank = torch.zeros(1, 3, side, side, device=self.model.device, dtype=self.model.dtype)
        handle = self.model.model.text_backbone.register_forward_hook(record)
        try:
            with torch.inference_mode():
                self.model(pixel_values=blank, **tokens)
        finally:
            handle.remove()
        return states[0]


def _token_scores(logits: Float[Tensor, "q t"], text: EncodedText) -> Float[Tensor, "q s"]:
    """Scores of the tokens of labels; 0 for special tokens and periods."""
    scores = logits[:, : len(text.owners)].sigmoid()
    check_numbers(scores)
    return scores * torch.tensor([owner != NO_LABEL for owner in text.owners])


def _merge_spans(text: EncodedText, tokens: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Spans of tokens; those of consecutive tokens become one."""
    spans: list[tuple[int, int]] = []
    for i, token in enumerate(tokens):
        begin, end = text.spans[token]
        if i and tokens[i - 1] == token - 1:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    return tuple(spans)
