"""What holds of every model that answers questions about a picture."""

import pytest
import torch
import transformers as tr

from tests.models import tiny_pairs
from zeroshot import models
from zeroshot.errors import UserError
from zeroshot.models.base import Answerer, RegionAnswerer, Regions
from zeroshot.models.vlm.captioners import ANSWERERS

QUESTIONS = ["is it?", "how many are there?", "who", "is it?", "what is in the picture"]

every_answerer = pytest.mark.parametrize("name", tiny_pairs.ANSWERERS)


@pytest.fixture(scope="module")
def answerer_of(loaded):
    return lambda name: loaded(name, models.load_answerer)


def texts(answers):
    return [[answer.text for answer in row] for row in answers]


def scores(answers):
    return [answer.score for row in answers for answer in row]


@every_answerer
def test_it_is_an_answerer(name, answerer_of):
    assert isinstance(answerer_of(name), Answerer)
    assert answerer_of(name).scored in ("sigmoid", "probability")


@every_answerer
@pytest.mark.parametrize("top_k", [1, 3])
def test_a_batch_gives_what_its_rows_give(name, top_k, answerer_of, pictures):
    model = answerer_of(name)
    together = model.answer(pictures, QUESTIONS, top_k)
    alone = [
        model.answer([picture], [question], top_k)[0]
        for picture, question in zip(pictures, QUESTIONS, strict=True)
    ]
    assert texts(together) == texts(alone)
    assert scores(together) == pytest.approx(scores(alone), rel=2e-3)
    assert len({row[0].text for row in together}) > 1 or name == "vilt_vqa"


@every_answerer
def test_answers_come_best_first_and_differ(name, answerer_of, pictures):
    for row in answerer_of(name).answer(pictures, QUESTIONS, 4):
        assert 1 <= len(row) <= 4
        assert scores([row]) == sorted(scores([row]), reverse=True)
        assert len(set(texts([row])[0])) == len(row)
        assert all(0 <= score <= 1 for score in scores([row]))


@every_answerer
def test_a_question_that_is_too_long_is_refused_not_cut(name, answerer_of, pictures):
    model = answerer_of(name)
    assert model.context_length is not None
    long = " ".join("a" for _ in range(model.context_length + 1))
    with pytest.raises(UserError, match=f"the model reads {model.context_length}|no room"):
        model.answer(pictures[:1], [long])


@torch.no_grad()
def test_vilt_is_the_library_own_forward(directory_of, answerer_of, pictures):
    model, pixels, tokens = tiny_pairs.library(
        directory_of("vilt_vqa"), tr.AutoModelForVisualQuestionAnswering
    )
    for picture, question in zip(pictures, QUESTIONS, strict=True):
        x = {
            **pixels(images=picture, return_tensors="pt"),
            **tokens([question], return_tensors="pt"),
        }
        chances = model(**x).logits[0].sigmoid()
        (row,) = answerer_of("vilt_vqa").answer([picture], [question], 2)
        best = chances.topk(2)
        assert [a.text for a in row] == [tiny_pairs.ANSWERS[i] for i in best.indices]
        assert scores([row]) == pytest.approx(best.values.tolist(), abs=1e-5)


def probability(logits, tokens, ends):
    """Of tokens one by one: the equation as it is written, for the check of batched scores."""
    total = 1.0
    for row, token in zip(logits, tokens, strict=True):
        total *= row.double().softmax(0)[token].item()
        if token in ends:
            break
    return total


@torch.no_grad()
def test_blip_answers_as_the_library_generates(directory_of, answerer_of, pictures):
    """Greedy, one by one; the score from a pass of the decoder over the whole answer."""
    model, pixels, tokens = tiny_pairs.library(
        directory_of("blip_vqa"), tr.BlipForQuestionAnswering
    )
    end = tokens.sep_token_id
    for picture, question in zip(pictures[:3], QUESTIONS[:3], strict=True):
        x = dict(pixels(images=picture, return_tensors="pt"))
        x["input_ids"] = tokens([question], return_tensors="pt")["input_ids"]
        ids = model.generate(**x, max_new_tokens=20, do_sample=False)[0]
        states = model.vision_model(pixel_values=x["pixel_values"])[0]
        asked = model.text_encoder(
            input_ids=x["input_ids"], encoder_hidden_states=states, return_dict=True
        ).last_hidden_state
        logits = model.text_decoder(
            input_ids=ids[None, :-1], encoder_hidden_states=asked, is_decoder=True
        ).logits[0]
        (answer,) = answerer_of("blip_vqa").answer([picture], [question])[0]
        assert answer.text == tokens.decode(ids, skip_special_tokens=True).strip()
        assert answer.score == pytest.approx(probability(logits, ids[1:].tolist(), {end}), rel=1e-3)


@torch.no_grad()
def test_git_answers_as_the_library_generates(directory_of, answerer_of, pictures):
    """[CLS] and the question, without an end; what it writes is the tail of the sequence."""
    model, pixels, tokens = tiny_pairs.library(directory_of("git"), tr.AutoModelForImageTextToText)
    asked = tokens(QUESTIONS[1], add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[tokens.cls_token_id, *asked]])
    x = pixels(images=pictures[1], return_tensors="pt")
    out = model.generate(**x, input_ids=ids, max_new_tokens=20, do_sample=False)[0]
    (answer,) = answerer_of("git").answer([pictures[1]], [QUESTIONS[1]])[0]
    assert answer.text == tokens.decode(out[ids.shape[1] :], skip_special_tokens=True).strip()


@torch.no_grad()
def test_blip_2_answers_only_what_is_new(directory_of, answerer_of, pictures):
    """Its output holds image tokens and prompt too."""
    model, pixels, tokens = tiny_pairs.library(
        directory_of("blip_2"), tr.AutoModelForVisualQuestionAnswering
    )
    asked = tokens("Question: is it? Answer:")["input_ids"]
    ids = torch.tensor([[model.config.image_token_index] * 3 + asked])
    x = pixels(images=pictures[1], return_tensors="pt")
    room = min(20, model.config.text_config.max_position_embeddings - ids.shape[1])
    out = model.generate(**x, input_ids=ids, max_new_tokens=room, do_sample=False)[0]
    (answer,) = answerer_of("blip_2").answer([pictures[1]], ["is it?"])[0]
    assert answer.text == tokens.decode(out[ids.shape[1] :], skip_special_tokens=True).strip()
    assert "Question" not in answer.text


def test_llava_puts_the_picture_where_its_template_says(answerer_of, pictures):
    model = answerer_of("llava")
    row = model._row(pictures[0], "is it?")
    image = model.tokenizer.convert_tokens_to_ids("<image>")
    assert int((row["input_ids"] == image).sum()) == 4  # a token for each patch


@torch.no_grad()
def test_beams_score_as_the_library_adds_up(directory_of, answerer_of, pictures):
    """`compute_transition_scores` of transformers, on the same beams."""
    model, pixels, tokens = tiny_pairs.library(directory_of("git"), tr.AutoModelForImageTextToText)
    asked = tokens(QUESTIONS[0], add_special_tokens=False)["input_ids"]
    out = model.generate(
        **pixels(images=pictures[0], return_tensors="pt"),
        input_ids=torch.tensor([[tokens.cls_token_id, *asked]]),
        max_new_tokens=20,
        do_sample=False,
        num_beams=4,
        num_return_sequences=4,
        return_dict_in_generate=True,
        output_logits=True,
    )
    total = model.compute_transition_scores(
        out.sequences, out.logits, out.beam_indices, normalize_logits=True
    )
    (row,) = answerer_of("git").answer(pictures[:1], QUESTIONS[:1], 4)
    expected = sorted(total.double().sum(1).exp().tolist(), reverse=True)
    assert scores([row]) == pytest.approx(expected[: len(row)], rel=1e-3)


def test_the_random_number_generator_is_left_alone_by_generating(answerer_of, pictures):
    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    answerer_of("blip_vqa").answer(pictures[:1], ["is it?"])
    assert torch.equal(torch.rand(3), before)


def test_every_row_of_the_table_is_tried():
    assert {"blip_vqa", "blip_2", "git"} <= tiny_pairs.ANSWERERS.keys()
    assert len(ANSWERERS) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip", "answers no questions"),
        ("lxmert", "give regions"),
        ("blip_itm", "are not in its files"),
    ],
)
def test_others_are_refused(name, message, directory_of):
    with pytest.raises(UserError, match=message):
        models.load_answerer(str(directory_of(name)), device="cpu")


# ----------------------------------------------------------------------------------- regions

every_region_answerer = pytest.mark.parametrize("name", tiny_pairs.REGIONS)


@pytest.fixture(scope="module")
def region_answerer_of(directory_of):
    return lambda name: models.load_region_answerer(str(directory_of(name)), device="cpu")


def regions(counts=(3, 5, 3)):
    generator = torch.Generator().manual_seed(0)
    return [
        Regions(torch.randn(n, 12, generator=generator), torch.rand(n, 4, generator=generator))
        for n in counts
    ]


@every_region_answerer
def test_regions_in_a_batch_give_what_each_gives(name, region_answerer_of):
    model = region_answerer_of(name)
    assert isinstance(model, RegionAnswerer)
    assert (model.answers, model.width) == (5, 12)
    together = model.answer_regions(regions(), QUESTIONS[:3], 2)
    alone = [
        model.answer_regions([seen], [question], 2)[0]
        for seen, question in zip(regions(), QUESTIONS[:3], strict=True)
    ]
    assert texts(together) == texts(alone)
    assert scores(together) == pytest.approx(scores(alone), abs=1e-5)


@torch.no_grad()
def test_lxmert_is_the_library_own_forward(directory_of, region_answerer_of):
    directory = directory_of("lxmert")
    model = tr.LxmertForQuestionAnswering.from_pretrained(directory).eval()
    tokens = tr.AutoTokenizer.from_pretrained(directory)(["is it?"], return_tensors="pt")
    (seen,) = regions((4,))
    out = model(**tokens, visual_feats=seen.features[None], visual_pos=seen.boxes[None])
    chances = out.question_answering_score[0].sigmoid().sort(descending=True)
    (row,) = region_answerer_of("lxmert").answer_regions([seen], ["is it?"], 5)
    assert scores([row]) == pytest.approx(chances.values.tolist(), abs=1e-5)
    assert texts([row])[0] == [tiny_pairs.ANSWERS[i] for i in chances.indices]


@torch.no_grad()
def test_visual_bert_marks_regions_as_its_authors_did(directory_of, region_answerer_of):
    directory = directory_of("visual_bert")
    model = tr.VisualBertForQuestionAnswering.from_pretrained(directory).eval()
    tokens = tr.AutoTokenizer.from_pretrained(directory)(["is it?"], return_tensors="pt")
    (seen,) = regions((4,))
    out = model(
        **tokens,
        visual_embeds=seen.features[None],
        visual_token_type_ids=torch.ones(1, 4, dtype=torch.long),
        visual_attention_mask=torch.ones(1, 4),
    )
    chances = out.logits[0].softmax(0).sort(descending=True)
    (row,) = region_answerer_of("visual_bert").answer_regions([seen], ["is it?"], 5)
    assert scores([row]) == pytest.approx(chances.values.tolist(), abs=1e-5)


def test_lxmert_needs_boxes(region_answerer_of):
    (seen,) = regions((3,))
    with pytest.raises(UserError, match="boxes"):
        region_answerer_of("lxmert").answer_regions([Regions(seen.features)], ["is it?"])


@every_region_answerer
def test_answers_without_names_have_to_be_named(name, tmp_path):
    directory = tiny_pairs.REGIONS[name](tmp_path / name, names=False)
    with pytest.raises(UserError, match="does not say what its 5 answers are"):
        models.load_region_answerer(str(directory), device="cpu")
    with pytest.raises(UserError, match="2 answers, but the head"):
        models.load_region_answerer(str(directory), ["a", "b"], device="cpu")
    named = models.load_region_answerer(str(directory), list("abcde"), device="cpu")
    (row,) = named.answer_regions(regions((3,)), ["is it?"], 5)
    assert sorted(texts([row])[0]) == list("abcde")


def test_loading_and_answering_say_nothing(directory_of, pictures, capfd, recwarn):
    """No progress bars, no advice of the library between the rows."""
    directories = [directory_of(name) for name in tiny_pairs.ALL]
    capfd.readouterr()  # saving them may have shown a progress bar
    recwarn.clear()
    for name, directory in zip(tiny_pairs.ALL, directories, strict=True):
        if name in tiny_pairs.PAIRS:
            scorer = models.load_pair_scorer(str(directory), device="cpu")
            scorer.score_pairs([pictures[: scorer.pictures]], ["a cat"])
        elif name in tiny_pairs.ANSWERERS:
            models.load_answerer(str(directory), device="cpu").answer(pictures[:1], ["is it?"], 2)
        elif name in tiny_pairs.WRITERS:
            models.load_writer(str(directory), device="cpu").write(pictures[:1])
        else:
            model = models.load_region_answerer(str(directory), device="cpu")
            model.answer_regions(regions((3,)), ["is it?"])
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("vilt_vqa", "ask"),
        ("lxmert", "ask"),
        ("blip_itm", "match"),
        ("encoder_decoder", "caption --method native"),
    ],
)
def test_as_an_encoder_they_are_refused_with_what_to_do(name, command, directory_of):
    with pytest.raises(UserError, match=f"is no encoder: `zeroshot {command} --model hf:{name}`"):
        models.load_dual_encoder(str(directory_of(name)), device="cpu")
