"""Tasks and the Python interface, on the pocket set and on the tiny models of the parity data."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import zeroshot
from tests.toy import ToyEncoder
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache
from zeroshot.errors import NotAvailableError, UserError
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.embedding import embed_images, embed_texts, pad_prompts
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.methods.asif import ASIF
from zeroshot.model_set.coupled_encoder import calibrate
from zeroshot.model_set.model_set import read_anchors, resolve
from zeroshot.ops import matching_scale, normalize
from zeroshot.results.result import AnchorContribution, ClassifyResult, Label

MAGIC = Path(__file__).parent / "data" / "magic"
PICTURES = [MAGIC / f"image_{i}.png" for i in range(5)]


@pytest.fixture(scope="module")
def tiny():
    return resolve(encoder=f"hf:{MAGIC / 'clip'}", language_model=f"hf:{MAGIC / 'lm'}")


@pytest.fixture(scope="module")
def coupled():
    return resolve("pocket", encoder="coupled")


# Python


def test_captions_of_paths_pictures_and_bytes(tiny):
    mixed = [PICTURES[0], Image.open(PICTURES[1]).convert("RGB"), PICTURES[2].read_bytes()]
    results = zeroshot.caption(mixed, tiny, k=5, max_tokens=4)
    alone = [zeroshot.caption(p, tiny, k=5, max_tokens=4)[0] for p in PICTURES[:3]]
    assert [r.caption for r in results] == [r.caption for r in alone]
    assert results[0].path == str(PICTURES[0])
    assert results[1].path is None
    assert results[2].id == alone[2].id


def test_a_cache_that_is_given_stays_open(tiny, tmp_path):
    with EmbeddingCache(tmp_path / "cache") as cache:
        first = zeroshot.embed(Image.new("RGB", (8, 8)), models=tiny, cache=cache)
        second = zeroshot.embed(Image.new("RGB", (8, 8)), models=tiny, cache=cache)
        assert first.rows() == second.rows()
        assert cache.info().spaces[0].rows == 1


def test_results_show_as_a_table_in_a_notebook(tiny, tmp_path):
    broken = tmp_path / "<b>.png"
    broken.write_bytes(b"no picture")
    results = zeroshot.classify([PICTURES[0], broken], ["cat", "d<og"], tiny)
    assert [r.error is None for r in results] == [True, False]
    assert len(results.failed) == 1
    page = results._repr_html_()
    assert page.count("<tr>") == 3  # with the header
    assert page.count("data:image/jpeg;base64,") == 1
    assert "&lt;b&gt;.png" in page
    assert "d&lt;og" in page
    assert "<table" in results[0]._repr_html_()
    with pytest.raises(dataclasses.FrozenInstanceError):
        results[0].labels = ()


def test_a_set_travels_with_all_that_was_asked_of_it():
    asked = {"precision": "bf16", "offline": True, "trust_remote_code": True, "fast": True}
    sent = resolve("pocket", device="cuda:1", **asked)
    assert pickle.loads(pickle.dumps(sent)) == sent


def test_load_gives_models_and_sets():
    assert zeroshot.load(f"hf:{MAGIC / 'clip'}").logit_scale == pytest.approx(100)
    assert (
        zeroshot.load("pocket").language_model.start != zeroshot.load("pocket").language_model.end
    )
    with pytest.raises(AttributeError, match="captoin"):
        zeroshot.captoin  # noqa: B018


def test_prompt_methods_change_scores_and_keep_order(tiny):
    by_mode = {
        mode: zeroshot.classify(PICTURES, ["a to", "ing"], tiny, mode=mode, top_k=2)
        for mode in ("embed", "score", "prob", "max")
    }
    for results in by_mode.values():
        assert [Path(r.path).name for r in results] == [p.name for p in PICTURES]
        for r in results:
            assert sum(x.score for x in r.labels) == pytest.approx(1, abs=1e-5)


# A coupled pair in a dual encoder's place


def test_a_coupling_labels_captions_and_embeds(coupled):
    for method in (None, "asif", "ensemble"):
        [result] = zeroshot.classify(PICTURES[0], ["red circle", "blue star"], coupled, method)
        assert sum(x.score for x in result.labels) == pytest.approx(1, abs=1e-5)
        assert set(result.models) == {"image_encoder", "text_encoder", "coupling"}
    [guided] = zeroshot.caption(PICTURES[0], coupled, k=3, max_tokens=3)
    assert guided.caption
    [found] = zeroshot.caption(PICTURES[0], coupled, "retrieve")
    assert found.caption in coupled.anchors.captions
    [other] = zeroshot.caption(PICTURES[0], coupled, "retrieve", coupling="procrustes")
    assert "procrustes" in other.models["coupling"].lower()
    assert found.models["coupling"].lower().startswith("asif")
    for method in ("consensus", "mbr"):
        [chosen] = zeroshot.caption(PICTURES[0], coupled, method)
        assert chosen.caption
        assert "  " not in chosen.caption
    [row] = zeroshot.embed(PICTURES[0], coupled)
    assert np.linalg.norm(row.embedding) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["asif", "csa"])
def test_a_label_is_explained_by_anchors(coupled, method):
    labels = ["red circle", "blue star"]
    [result] = zeroshot.classify(PICTURES[0], labels, coupled, method, explain=1200)
    shares = [reason.share for reason in result.explanation]
    assert sum(shares) == pytest.approx(result.labels[0].cosine, rel=1e-3)
    known = {entry.id: entry.captions for entry in coupled.anchors.entries}
    assert all(known[reason.anchor] == reason.captions for reason in result.explanation)
    [few] = zeroshot.classify(PICTURES[0], labels, coupled, method, explain=2)
    assert few.explanation == result.explanation[:2]
    assert few.row()["because"][0]["captions"] == list(result.explanation[0].captions)
    assert few.explanation[0].captions[0] in few._repr_html_()
    with pytest.raises(UserError, match="can explain their scores"):
        zeroshot.classify(PICTURES[0], labels, coupled, "ensemble", explain=2)


def test_an_explanation_shows_pictures_and_no_markup():
    source = Source(str(PICTURES[0]))
    reasons = (
        AnchorContribution("<a>", 0.25, ("a <b>red</b> heart",), str(PICTURES[1])),
        AnchorContribution("gone", -0.125, (), "gone.png"),
    )
    labels = (Label("heart", 0.5, 0.25),)
    result = ClassifyResult(source, "x", labels=labels, explanation=reasons)
    page = result._repr_html_()
    assert page.count("<img") == 2
    assert "&lt;b&gt;red" in page
    assert "<b>" not in page
    assert result.summary().splitlines()[1:] == ["+0.250  a <b>red</b> heart", "-0.125  gone"]


def test_guided_decoding_matches_texts(coupled):
    """`match` ranks as the cosines of joint rows do."""
    encoder = coupled.encoder
    picture = Image.open(PICTURES[0]).convert("RGB")
    joint = encoder.encode_images([picture, picture])
    texts = [["a red circle", "a blue star", "a green ring"], ["a star", "red", "a blue heart"]]
    ours = encoder.matcher()(joint, texts)
    rows = encoder.encode_texts([text for row in texts for text in row]).view(2, 3, -1)
    expected = torch.einsum("bm,bkm->bk", joint, rows)
    assert ours.shape == (2, 3)
    assert torch.equal(ours.argmax(1), expected.argmax(1))
    assert encoder.matcher()(joint[:0], []).shape == (0, 0)


def test_a_coupled_encoder_is_a_dual_encoder(coupled):
    encoder = coupled.encoder
    picture = Image.open(PICTURES[0]).convert("RGB")
    image, text = encoder.encode_images([picture]), encoder.encode_texts(["a red circle"])
    assert image.shape == text.shape == (1, len(coupled.anchors.images))
    torch.testing.assert_close(image.norm(dim=1), torch.ones(1))
    fitted = encoder.coupling
    raw = fitted.scores(
        encoder.image_encoder.encode_images([picture]),
        encoder.text_encoder.encode_texts(["a red circle"])[None],
    )
    described = fitted.map_images(encoder.image_encoder.encode_images([picture]))
    torch.testing.assert_close(raw / described.norm(), image @ text.T)
    assert coupled.anchors.fingerprint in encoder.name


def test_the_scale_of_a_coupling_is_the_most_likely_one():
    """Against a scan of the negative log-likelihood."""
    similarity = torch.rand(40, 40, generator=torch.Generator().manual_seed(0))
    similarity += 0.4 * torch.eye(40)
    scales = torch.linspace(1, 60, 5901)
    losses = [-(s * similarity).log_softmax(1).diagonal().mean() for s in scales]
    best = float(scales[int(torch.stack(losses).argmin())])
    assert matching_scale(similarity) == pytest.approx(best, abs=0.05)
    pairs = normalize(torch.randn(30, 5))
    assert calibrate(ASIF(k=5), pairs, pairs) == 20.0, "too few pairs to hold any out"


def test_a_set_without_a_part_says_so(tiny):
    with pytest.raises(UserError, match="no coupled pair"):
        _ = tiny.coupled
    with pytest.raises(UserError, match="no anchors"):
        zeroshot.caption(PICTURES[0], tiny, "retrieve")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": torch.ones(3, 2)}, "two arrays: images, texts"),
        ({"images": torch.ones(3, 2), "texts": torch.ones(4, 2)}, r"\[3, 2\] and texts \[4, 2\]"),
        (
            {"images": torch.zeros(3, 2), "texts": torch.ones(3, 2)},
            "images has an embedding that is zero",
        ),
        (
            {"images": torch.ones(3, 2), "texts": torch.full((3, 2), torch.nan)},
            "texts has an embedding",
        ),
    ],
)
def test_anchors_that_are_wrong(tmp_path, arrays, message):
    save_file(arrays, tmp_path / "anchors.safetensors")
    with pytest.raises(UserError, match=message):
        read_anchors(tmp_path / "anchors.safetensors")


def test_anchor_files_that_are_wrong(tmp_path):
    path = tmp_path / "anchors.safetensors"
    with pytest.raises(NotAvailableError, match="not there"):
        read_anchors(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        read_anchors(path)
    save_file({"images": torch.ones(2, 3), "texts": torch.ones(2, 3)}, path)
    assert read_anchors(path).captions == ()
    path.with_suffix(".jsonl").write_text('{"captions": ["a", "b"]}\n')
    with pytest.raises(UserError, match="1 lines for 2 anchors"):
        read_anchors(path)
    path.with_suffix(".jsonl").write_text('{"captions": ["a", "b"]}\n{"captions": ["b"]}\n')
    assert read_anchors(path).captions == ("a", "b")


# Batches and counts


def test_out_of_memory_halves_the_batch_and_goes_on():
    sizes = []

    def work(items):
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * i for i in items]

    answers = [a for _, batch in batched_with_oom_retry(work, list(range(10)), 8) for a in batch]
    assert answers == [2 * i for i in range(10)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2]

    def never_fits(items):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="allocate"):
        list(batched_with_oom_retry(never_fits, [1, 2], 2))

    def broken(items):
        sizes.append(-1)
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="mismatch"):
        list(batched_with_oom_retry(broken, [1, 2], 2))
    assert sizes.count(-1) == 1, "another error is not tried again"


class CountingEncoder(ToyEncoder):
    """Pictures by their mean colour; counts what it is given."""

    calls: list[int]

    def encode_images(self, images):
        self.calls = [*getattr(self, "calls", []), len(images)]
        rows = torch.tensor([[*np.asarray(i).mean((0, 1)), 1.0] for i in images])
        return normalize(rows.float())


def test_each_different_content_is_encoded_once_and_in_order(tmp_path):
    from zeroshot.inputs.resolve import find

    copies = []
    for i, source in enumerate([0, 1, 0, 2, 1, 0]):
        copies.append(tmp_path / f"{i}.png")
        copies[-1].write_bytes(PICTURES[source].read_bytes())
    copies.insert(3, tmp_path / "missing.png")
    encoder, meter = CountingEncoder(), Meter()
    with EmbeddingCache(tmp_path / "cache") as cache:
        batches = list(embed_images(find(copies).sources, encoder, cache, meter, batch_size=2))
        rows = torch.cat(
            [
                b.embeddings if b.embeddings.shape[1] else torch.zeros(len(b.sources), 4)
                for b in batches
            ]
        )
        assert [f is not None for b in batches for f in b.failures] == [i == 3 for i in range(7)]
        expected = encoder.encode_images([Image.open(p).convert("RGB") for p in PICTURES[:3]])
        torch.testing.assert_close(rows[[0, 1, 2, 4, 5, 6]], expected[[0, 1, 0, 2, 1, 0]])
        assert sum(encoder.calls) - 3 <= 4
        encoder.calls = []
        again = list(embed_images(find(copies).sources, encoder, cache, Meter(), batch_size=3))
        assert encoder.calls == []
        assert sum(len(b.readable) for b in again) == 6
        texts = embed_texts(["x", "y", "x"], encoder, cache, meter)
        assert (meter.texts_encoded, meter.texts_cached) == (2, 0)
        torch.testing.assert_close(embed_texts(["y", "x"], encoder, cache, meter), texts[[1, 0]])
        assert (meter.texts_encoded, meter.texts_cached) == (2, 2)
    with NullCache() as nothing:
        list(embed_images(find(copies).sources, encoder, nothing, Meter()))
        assert sum(encoder.calls) > 0


def test_texts_that_begin_alike_reach_the_encoder_together(tmp_path):
    """Prompts come by class; those of one template are neighbours when they are encoded."""
    given = []

    class Listening(ToyEncoder):
        def encode_texts(self, texts):
            given.append(list(texts))
            return super().encode_texts(texts)

    templates = ["a photo of {}", "the {}", "{} as a toy"]
    texts = [t.format(f"thing {i}") for i in range(700) for t in templates]
    with EmbeddingCache(tmp_path) as cache:
        rows = embed_texts([*texts, texts[5]], Listening(), cache, Meter())
    assert [len(batch) for batch in given] == [1024, 1024, 2100 - 2048]
    assert [text for batch in given for text in batch] == sorted(texts)
    assert torch.equal(rows, ToyEncoder().encode_texts([*texts, texts[5]]))


def test_ragged_prompts_by_hand():
    rows = torch.arange(1.0, 7.0)[:, None]
    block, mask = pad_prompts(rows, [1, 3, 2])
    assert mask.tolist() == [[True, False, False], [True] * 3, [True, True, False]]
    assert block[..., 0].tolist() == [[1, 0, 0], [2, 3, 4], [5, 6, 0]]
