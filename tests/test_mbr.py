"""Consensus and minimum Bayes risk, against loops that share nothing with them."""

import math
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

from tests.toy import ToyEncoder, ToyLanguageModel
from zeroshot.decoding import mean_log_probability
from zeroshot.errors import UserError
from zeroshot.methods import Pool
from zeroshot.methods._continuations import DOUBT, ContinuationGuide, Continuations
from zeroshot.methods._risk import expected_cider, has_repeated_word
from zeroshot.methods.consensus import Consensus
from zeroshot.methods.mbr import MBR
from zeroshot.metrics.captioning import cider, document_frequency
from zeroshot.model_set.model_set import ModelSet, resolve
from zeroshot.model_set.spec import CouplingSpec, SetSpec
from zeroshot.tasks.captioning.captioner import captioner

WORDS = ["<start>", "<end>", "a", "the", "dog", "cat", "runs", "sits", "on", "in", "grass", "mat"]
WORDS += ["red", "old", "by", "and", "small", "tree"]
CAPTIONS = [
    "a dog runs on grass",
    "a dog runs on the grass",
    "a small dog runs",
    "the cat sits on a mat",
    "a cat sits by the tree",
    "an old tree",
    "the red mat and the grass",
    "a dog sits in the old grass",
]


class WordModel(ToyLanguageModel):
    """A toy language model whose tokens are words."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(len(WORDS), seed=seed)

    def encode(self, text):
        return [WORDS.index(word) for word in text.split() if word in WORDS]

    def decode(self, tokens):
        return " ".join(WORDS[t] for t in tokens)


def pool_of(captions, encoder):
    return Pool(captions, encoder.encode_texts(captions))


def pictures(count=4, seed=3):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 5, generator=generator) + 1
    return torch.nn.functional.normalize(rows, dim=1)


# expected CIDEr


def slow_expected_cider(caption, references, weights, frequency):
    """The public metric for each reference, with CIDEr-D's penalty on lengths."""
    total = 0.0
    for reference, weight in zip(references, weights, strict=True):
        if reference != caption:
            [score] = cider([caption], [[reference]], plain=True, frequency=frequency).each
            apart = len(caption.split()) - len(reference.split())
            total += weight * score * math.exp(-(apart**2) / 72)
    return total


def test_expected_cider_is_the_metric_weighted():
    frequency = document_frequency([[text] for text in CAPTIONS])
    weights = torch.linspace(0.3, 0.05, 6)
    said = [*CAPTIONS, "a dog", "zebra", "a dog and a dog"]
    fast = expected_cider(said, CAPTIONS[:6], weights, frequency)
    slow = [slow_expected_cider(t, CAPTIONS[:6], weights.tolist(), frequency) for t in said]
    torch.testing.assert_close(fast, torch.tensor(slow, dtype=torch.float32), atol=1e-5, rtol=1e-5)
    assert fast[-2] == 0


def test_nothing_speaks_for_itself():
    frequency = document_frequency([[text] for text in CAPTIONS])
    weights = torch.tensor([0.9, 0.1])
    gain = expected_cider(CAPTIONS[:2], [CAPTIONS[0], CAPTIONS[3]], weights, frequency)
    assert gain[0] < gain[1]


# consensus


def test_consensus_by_hand():
    """Three speak of a dog, one of a boat fits best: the dog has it, and the boat by relevance."""
    texts = ["a dog runs", "the dog runs", "a dog runs fast", "one boat", "people"]
    cosine = torch.tensor([0.8, 0.7, 0.7, 0.9, 0.1])
    rows = torch.stack([cosine, (1 - cosine**2).sqrt()], 1)
    picture = torch.tensor([[1.0, 0.0]])
    encoder = ToyEncoder(logit_scale=1.0)
    [chosen] = Consensus(neighbours=4).caption(picture, encoder, pool=Pool(texts, rows))
    assert chosen.text == "a dog runs"
    assert chosen.score == pytest.approx(0.8)
    [chosen] = Consensus(4, relevance=1000).caption(picture, encoder, pool=Pool(texts, rows))
    assert chosen.text == "one boat"


def test_consensus_is_an_argmax_over_loops():
    encoder = ToyEncoder()
    images, pool = pictures(), pool_of(CAPTIONS, ToyEncoder())
    method = Consensus(neighbours=6, sharpness=0.3, relevance=0.1)
    frequency = document_frequency([[text] for text in CAPTIONS])
    for image, got in zip(images, method.caption(images, encoder, pool=pool), strict=True):
        cosine = [float(row @ image) for row in pool.embeddings]
        near = sorted(range(len(CAPTIONS)), key=lambda j: -cosine[j])[:6]
        strength = [math.exp(0.3 * 10 * cosine[j]) for j in near]
        weights = [s / sum(strength) for s in strength]
        texts = [CAPTIONS[j] for j in near]
        score = {
            texts[i]: slow_expected_cider(texts[i], texts, weights, frequency)
            + 0.1 * 10 * cosine[j]
            for i, j in enumerate(near)
        }
        assert got.text == max(score, key=score.__getitem__)


def consensus(pool, images, encoder):
    return Consensus(neighbours=6).caption(images, encoder, pool=pool)


def mbr(pool, images, encoder):
    method = MBR(neighbours=6, beginnings=3, k=8, max_tokens=9)
    return method.caption(images, encoder, language_model=WordModel(), pool=pool)


@pytest.mark.parametrize("run", [consensus, mbr])
def test_the_order_of_the_pool_and_repeated_captions_change_nothing(run):
    encoder, images = ToyEncoder(), pictures(6)
    once = [c.text for c in run(pool_of(CAPTIONS, encoder), images, encoder)]
    assert len(set(once)) > 1
    for other in (CAPTIONS[::-1], [*CAPTIONS, *CAPTIONS[2:5]], CAPTIONS * 3):
        assert [c.text for c in run(pool_of(other, encoder), images, encoder)] == once


@pytest.mark.parametrize("run", [consensus, mbr])
def test_pictures_do_not_depend_on_each_other(run):
    encoder, images = ToyEncoder(), pictures(5)
    pool = pool_of(CAPTIONS, encoder)
    together = [c.text for c in run(pool, images, encoder)]
    assert [run(pool, image[None], encoder)[0].text for image in images] == together


def test_word_frequencies_of_a_large_pool_do_not_depend_on_its_order(monkeypatch):
    monkeypatch.setattr("zeroshot.methods._caption_pool.FREQUENCY_SAMPLE", 3)
    rows = torch.zeros(len(CAPTIONS), 2)
    frequency = Pool(CAPTIONS, rows).frequency
    assert frequency.images == 3
    assert Pool(CAPTIONS[::-1], rows).frequency == frequency


# what retrieved captions go on with


def test_continuations_by_hand():
    """After 5: 6 with weight .6 and 7 with .2; after anything, shares of all tokens."""
    model = Continuations([[0, 5, 6, 1], [0, 5, 7, 1], [0, 8, 1]], [0.6, 0.2, 0.2])
    unigram = {5: 0.8, 6: 0.6, 7: 0.2, 8: 0.2, 1: 1.0}
    whole = sum(unigram.values())
    trust = 0.8 / (0.8 + DOUBT)
    after = model.after([9, 5])  # [9, 5] was never seen
    expected = {t: (1 - trust) * w / whole for t, w in unigram.items()}
    expected[6] += trust * 0.75
    expected[7] += trust * 0.25
    assert after == pytest.approx(expected)


def test_continuations_are_probabilities():
    lm = WordModel()
    texts = [[0, *lm.encode(text), 1] for text in CAPTIONS]
    model = Continuations(texts, torch.linspace(1, 2, len(texts)).softmax(0).tolist())
    for context in ([0], [0, 2], [0, 2, 4], [0, 2, 4, 6, 8], [0, 17, 17], [0, *range(2, 9)]):
        assert sum(model.after(context).values()) == pytest.approx(1)
        assert min(model.after(context).values()) > 0


def test_a_text_whose_weight_underflows_counts_as_unseen():
    model = Continuations([[0, 5, 6, 1], [0, 8, 9, 1]], [1.0, 0.0])
    assert model.after([0, 8]) == model.after([0, 17])
    assert sum(model.after([0, 8]).values()) == pytest.approx(1)


def test_the_guide_sees_the_beginning():
    model = Continuations([[0, 5, 6, 1]], [1.0])
    guide = ContinuationGuide([model, model], [[0], [0, 5]], beta=2.0)
    scores = guide([1, 0], [[], [5]], torch.tensor([[6, 1, 9], [6, 1, 9]]))
    assert scores[0].tolist() == scores[1].tolist()
    assert scores[0, 0] == pytest.approx(2 * model.after([0, 5])[6])
    assert scores[0, 2] == 0


def test_mean_log_probability_against_one_text_at_a_time():
    lm = WordModel()
    texts = [[2, 4], [3, 5, 7], [2, 4], [], [6, 6]]
    for text, mean in zip(texts, mean_log_probability(lm, texts), strict=True):
        states = lm.states(torch.tensor([[0, *text]]))[0]
        likely = (states @ lm.head).softmax(-1).log()
        own = [float(likely[i, token]) for i, token in enumerate([*text, 1])]
        assert mean == pytest.approx(sum(own) / len(own), abs=1e-5)


# minimum Bayes risk


def slow_write(lm, prefix, model, method):
    """Guided contrastive search, token by token; None for a text that does not end."""
    tokens = list(prefix)
    for _ in range(method.max_tokens):
        states = lm.states(torch.tensor([tokens]))[0]
        probability = (states[-1] @ lm.head).softmax(-1)
        best = None
        for token in probability.topk(method.k).indices.tolist():
            state = lm.states(torch.tensor([[*tokens, token]]))[0, -1]
            penalty = max(float(torch.cosine_similarity(state, s, dim=0)) for s in states)
            score = (1 - method.alpha) * float(probability[token]) - method.alpha * penalty
            score += method.beta * model.get_next(tokens).get(token, 0.0)
            if best is None or score > best[0]:
                best = score, token
        if best[1] == lm.end:
            return tokens[1:]
        tokens.append(best[1])
    return None


class SlowContinuations:
    """The interpolation by its definition, from the longest context down."""

    def __init__(self, texts, weights):
        self.texts, self.weights = texts, weights

    def followers(self, context):
        found = Counter()
        for text, weight in zip(self.texts, self.weights, strict=True):
            for i in range(1, len(text)):
                if i >= len(context) and text[i - len(context) : i] == context:
                    found[text[i]] += weight
        return found

    def get_next(self, text):
        def from_order(n):
            context = list(text[len(text) - n :]) if n else []
            found = self.followers(context)
            mass = sum(found.values())
            own = {t: w / mass for t, w in found.items()} if mass else {}
            if n == 0:
                return own
            trust, shorter = mass / (mass + DOUBT), from_order(n - 1)
            return {
                t: trust * own.get(t, 0) + (1 - trust) * shorter.get(t, 0)
                for t in own.keys() | shorter.keys()
            }

        return from_order(min(3, len(text)))


def slow_mbr(method, image, encoder, lm, captions):
    frequency = document_frequency([[text] for text in captions])
    rows = encoder.encode_texts(captions)
    scale = encoder.logit_scale
    cosine = {text: float(row @ image) for text, row in zip(captions, rows, strict=True)}
    near = sorted(captions, key=lambda text: -cosine[text])[: method.neighbours]
    strength = [math.exp(method.sharpness * scale * cosine[text]) for text in near]
    weights = [s / sum(strength) for s in strength]
    gain = {t: slow_expected_cider(t, near, weights, frequency) for t in near}
    order = sorted(near, key=lambda t: -(gain[t] + method.relevance / 2 * scale * cosine[t]))
    prefixes = [[lm.start]]
    for text in order[: method.beginnings]:
        for n in (1, 2, 3, 4):
            prefixes.append([lm.start, *lm.encode(" ".join(text.split()[:n]))])
    model = SlowContinuations([[0, *lm.encode(text), 1] for text in near], weights)
    found = {text: lm.encode(text) for text in near}
    for prefix in prefixes:
        tokens = slow_write(lm, prefix, model, method)
        if tokens:
            found.setdefault(lm.decode(tokens), tokens)
    scores = {}
    for text, tokens in found.items():
        [row] = encoder.encode_texts([text])
        [likely] = mean_log_probability(lm, [tokens])
        counts = Counter(text.split())
        share = {w: sum(w in t.split() for t in captions) / len(captions) for w in counts}
        if not any(n > 1 and share[w] <= 0.1 for w, n in counts.items()):
            scores[text] = (
                slow_expected_cider(text, near, weights, frequency)
                + method.relevance * scale * float(row @ image)
                + method.fluency * likely
            )
    return max(scores, key=scores.__getitem__), len(found) - len(near)


@pytest.mark.parametrize("seed", range(4))
def test_mbr_against_loops(seed):
    encoder, lm = ToyEncoder(), WordModel(seed)
    method = MBR(neighbours=5, beginnings=2, k=6, beta=1.0 + seed, max_tokens=7)
    images = pictures(3, seed)
    got = method.caption(images, encoder, language_model=lm, pool=pool_of(CAPTIONS, encoder))
    written = 0
    for image, caption in zip(images, got, strict=True):
        text, new = slow_mbr(method, image, encoder, WordModel(seed), CAPTIONS)
        assert caption.text == text
        [row] = encoder.encode_texts([text])
        assert caption.score == pytest.approx(float(row @ image), abs=1e-5)
        written += new
    assert written > 0


def test_what_does_not_end_is_never_said():
    encoder, lm = ToyEncoder(), WordModel()
    lm.head[:, lm.end] = 0
    lm.head *= 3  # whatever comes before, some word is likelier than the end
    pool = pool_of(CAPTIONS, encoder)
    method = MBR(neighbours=6, beginnings=6, k=1, max_tokens=5, fluency=0.0)
    said = method.caption(pictures(6), encoder, language_model=lm, pool=pool)
    assert all(caption.text in CAPTIONS for caption in said)


def test_a_rare_word_comes_once_where_there_is_a_choice():
    captions = ["a dog by a dog by a dog", "a dog by a dog", "a cat on grass"]
    encoder, lm = ToyEncoder(), WordModel()
    images = encoder.encode_texts(captions[:1])
    method = MBR(neighbours=3, beginnings=0, k=1, max_tokens=1, relevance=100.0)
    few = [f"the red mat {i}" for i in range(40)]
    [said] = method.caption(
        images,
        encoder,
        language_model=lm,
        pool=Pool(
            [*captions, *few], torch.cat([encoder.encode_texts(captions), -images.repeat(40, 1)])
        ),
    )
    assert said.text == "a cat on grass"


@pytest.mark.parametrize(
    "captions",
    [
        ("the red mat the red mat", "the red mat and red mat"),
        ("old tree by old tree", "old tree by a tree tree"),
        ("small dog runs small dog", "small dog sits small dog"),
    ],
)
def test_close_scores_are_told_apart_where_every_caption_repeats_a_word(captions):
    """Two captions speak for each other: the nearer one, which weighs more, for the other one."""
    encoder = ToyEncoder()
    rows = encoder.encode_texts(captions)
    few = [f"a cat {i}" for i in range(40)]
    image = torch.nn.functional.normalize(2 * rows[0] + rows[1], dim=0)[None]
    pool = Pool([*captions, *few], torch.cat([rows, -image.repeat(40, 1)]))
    plain = {"beginnings": 0, "max_tokens": 1, "relevance": 0.0, "fluency": 0.0}
    method = MBR(neighbours=2, sharpness=0.01, **plain)
    [said] = method.caption(image, encoder, language_model=WordModel(), pool=pool)
    assert said.text == captions[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a dog and a cat", False), ("a dog and a dog", True), ("the dog's dog", True), ("", False)],
)
def test_repeats(text, expected):
    frequency = document_frequency([["a cat"]] * 18 + [["a dog"]] + [["the tree"]])
    assert has_repeated_word(text, frequency, 0.1) is expected


def test_what_is_missing_or_out_of_range():
    encoder, images = ToyEncoder(), pictures(1)
    pool = pool_of(CAPTIONS, encoder)
    lm = WordModel()
    for call in (
        lambda: Consensus().caption(images, encoder),
        lambda: Consensus().caption(images, encoder, pool=Pool([], torch.zeros(0, 5))),
        lambda: Consensus().caption(images, encoder, pool=pool, prompts=["a"]),
        lambda: Consensus(neighbours=0).caption(images, encoder, pool=pool),
        lambda: Consensus(sharpness=-1.0).caption(images, encoder, pool=pool),
        lambda: MBR().caption(images, encoder, pool=pool),
        lambda: MBR().caption(images, encoder, language_model=lm),
        lambda: MBR().caption(images, encoder, language_model=lm, pool=pool, trace=True),
        lambda: MBR(beginnings=-1).caption(images, encoder, language_model=lm, pool=pool),
    ):
        with pytest.raises(UserError):
            call()


# what a set captions by


@pytest.fixture
def make_set(tmp_path):
    def make(captions=("a dog", "a cat"), coupling=None, **more):
        file = tmp_path / "anchors.safetensors"
        generator = torch.Generator().manual_seed(0)
        rows = {side: torch.randn(2, 3, generator=generator) for side in ("images", "texts")}
        save_file(rows, file)
        lines = "".join(f'{{"captions": ["{text}"]}}\n' for text in captions)
        file.with_suffix(".jsonl").write_text(lines)
        parts = {"image_encoder": "hf:i", "text_encoder": "hf:t", "language_model": "hf:l"}
        spec = CouplingSpec("asif", file, coupling or {})
        return ModelSet(SetSpec("mine", coupling=spec, **parts | more))

    return make


def test_a_set_with_captions_is_captioned_by_mbr(make_set, monkeypatch):
    def chosen(models, method=None, **more):
        return type(captioner(models, method, {}, **more)).__name__

    assert chosen(make_set()) == "MBR"
    assert chosen(make_set(), "magic") == "MaGiC"
    assert chosen(make_set(), preset="story") == "MaGiC"
    assert chosen(make_set(), features={"prompts": False, "trace": True}) == "MaGiC"
    assert chosen(make_set(), features={"prompts": False, "trace": False}) == "MBR"
    assert chosen(make_set(caption={"method": "consensus"})) == "Consensus"
    assert chosen(make_set(caption={"k": 3})) == "MaGiC"
    assert captioner(make_set(caption={"method": "mbr", "k": 3}), None, {}).k == 3
    named = make_set(caption={"method": "mbr", "neighbours": 3})
    assert captioner(named, None, {}, features={"prompts": True}).k == 45
    assert chosen(make_set(language_model=None)) == "MaGiC"
    assert chosen(resolve("base")) == chosen(resolve("pocket")) == "MaGiC"
    monkeypatch.setattr("zeroshot.tasks.captioning.captioner.LARGEST_POOL", 1)
    assert chosen(make_set()) == "MaGiC"


def test_an_open_coupling_is_chosen_for_captions(make_set):
    models = make_set()
    assert models.with_chosen_coupling.spec.coupling.method == "auto"
    assert models.with_chosen_coupling is models.with_chosen_coupling
    assert models.spec.coupling.method == "asif"
    named = make_set(coupling={"k": 5})
    assert named.with_chosen_coupling is named
    dual = make_set(encoder="hf:clip")
    assert dual.with_chosen_coupling is dual
    assert resolve("base").with_chosen_coupling.spec.coupling is None
    other = models.with_coupling("csa", lam=2.0).spec.coupling
    assert (other.method, other.options) == ("csa", {"lam": 2.0})
    with pytest.raises(UserError, match="'magic' couples no encoders; these do: asif, auto, csa"):
        _ = models.with_coupling("magic").coupling
    with pytest.raises(UserError, match="no anchors"):
        resolve("base").with_coupling("csa")
