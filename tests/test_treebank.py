"""The treebank's words, rule by rule, as PTBTokenizer of CoreNLP 3.4.1 answered for these texts."""

import pytest
from hypothesis import given, strategies as st

from zeroshot.metrics.ptb_tokenizer import tokenize

CASES = {
    "lower case": ("ON The Street", "on the street"),
    "punctuation goes": (
        "a man, a dog; two: cats! - dogs -- and? rest...",
        "a man a dog two cats dogs and rest",
    ),
    "two dots are two marks": ("hello.. hello.... wait…now", "hello hello wait now"),
    "what goes is a list": ("what?! yes!! no ??", "what ?! yes !! no ??"),
    "brackets stay, in lower case": (
        "a (small) [dog] {cat}",
        "a -lrb- small -rrb- -lsb- dog -rsb- -lcb- cat -rcb-",
    ),
    "double quotes go": (
        'a "quoted" word, “curly”, «such» 6" wide',
        "a quoted word curly such 6 wide",
    ),
    "single quotes go": ("a 'stop' sign, ‘single’ 'A man'", "a stop sign single a man"),
    "possessives": ("the man's dogs' toys, Elvis's", "the man 's dogs toys elvis 's"),
    "curly possessives": ("it’s the dog’s", "it 's the dog 's"),
    "clitics": ("they're I'm we've he'd you'll IT'S", "they 're i 'm we 've he 'd you 'll it 's"),
    "n't": ("don't CAN'T won’t isn't mustn't've", "do n't ca n't wo n't is n't must n't 've"),
    "not a clitic": ("it'sx it'lls", "it sx it lls"),
    "an apostrophe within": ("ab'c b'day dog's-eye", "ab c b day dog 's eye"),
    "words with their own": (
        "o'clock ma'am ne'er s'mores c'mon cap'n D'Angelo O'Brien l'eau",
        "o'clock ma'am ne'er s'mores c'mon cap'n d'angelo o'brien l'eau",
    ),
    "cut off before": ("'em 'til 'cause '90s '05 'bout", "'em 'til 'cause '90s '05 bout"),
    "and": ("rock 'n' roll rock'n'roll", "rock 'n' roll rock 'n' roll"),
    "cut off after": (
        "y'all j'aime ol' boy somethin' more",
        "y' all j' aime ol' boy somethin' more",
    ),
    "two words": (
        "cannot Gonna gotta wanna gimme lemme 'tis 'twas",
        "can not gon na got ta wan na gim me lem me 't is 't was",
    ),
    "cannot among others": ('"cannot" cannot. cannot-x', "can not can not cannot-x"),
    "hyphens within": (
        "t-shirt black-and-white 10-year-old ex-",
        "t-shirt black-and-white 10-year-old ex",
    ),
    "dashes between": ("beach--kite a – b — c", "beach kite a b c"),
    "a hyphen binds commas": (
        "man,two-year old dog.cat-fish dog,cat",
        "man,two-year old dog.cat-fish dog cat",
    ),
    "no space after the stop": (
        "bathtub.in the dog!cat 5.dog a,b",
        "bathtub.in the dog!cat 5 dog a b",
    ),
    "slashes": (
        "graphics/sign and/or/x w/ w/o 24/7 a/b/c/d",
        "graphics/sign and/or/x w / w/o 24/7 a/b/c / d",
    ),
    "numbers": (
        "1,000 3.14 .5 -5 10:30 1/2 5% $5.00 #1 5x 2.5ft",
        "1,000 3.14 .5 -5 10:30 1/2 5 % $ 5.00 # 1 5x 2.5 ft",
    ),
    "signs of numbers": ("+1-2 10:30-11:30 1.5-2.5 5-6-7", "+1 -2 10:30 -11:30 1.5-2 .5 5-6-7"),
    "times": ("10:30am 5pm 5 p.m. a.m.", "10:30 am 5pm 5 p.m. a.m."),
    "money and parts": ("€20 £10 ¢5 US$5 ½ 1½ ¼", "$ 20 # 10 cents 5 us$ 5 1/2 1 1/2 1/4"),
    "abbreviations": (
        "Mr. Smith and Mrs. Jones of St. Louis vs. Dr. No etc.",
        "mr. smith and mrs. jones of st. louis vs. dr. no etc.",
    ),
    "capitalised ones": ("in Mass. a mass. Wash. wash.", "in mass. a mass wash. wash"),
    "numbered ones": ("No. 5 no. five fig.5 no.", "no. 5 no five fig. 5 no"),
    "feet and inches": (
        "a man 5'10\" tall 6'2\" or 5'10 in '10, he 5'5\" '05 ('07)",
        "a man 5 10 tall 6 2 or 5 '10 in 10 he 5 5 '05 -lrb- 07 -rrb-",
    ),
    "names of languages": (
        "C++ code, c++. F# C# g++ xC++ C++11",
        "c++ code c++ f# c# g + + xc + + c++ 11",
    ),
    "letters in a row": (
        "the U. S. A. and D. C. the J. A. B. Smith",
        "the u. s. a. and d. c. the j. a. b. smith",
    ),
    "a starter between spaces": (
        "I. The, I. The step B. It? B. It is U. S. If-so AT&T. He",
        "i. the i the step b. it b it is u. s. if-so at&t he",
    ),
    "letters": (
        "the letter b. and U.S. e.g. Ph.D. J. R. Smith",
        "the letter b. and u.s. e.g. ph.d. j. r. smith",
    ),
    "a letter before a sentence": ("I. The step, I. Two", "i the step i. two"),
    "a stop before a comma": ("the dog., a cat.; e.g., 5.,", "the dog. a cat. e.g. 5."),
    "ampersands": ("AT&T R&B a&b A & B M&Ms H&amp;M &lt;", "at&t r&b a & b a & b m&m s h&m <"),
    "addresses": (
        "www.example.com http://a.b/c?d, me@x.com. x.org/abc",
        "www.example.com http://a.b/c?d me@x.com x.org/abc",
    ),
    "tags": ("<br> <b>bold</b> 5<6 @home #tag", "<br> <b> bold </b> 5 < 6 @home #tag"),
    "faces": (":) ;-) :D :p <3 =)", ":-rrb- ;--rrb- :d :p < 3 =-rrb-"),
    "signs": ("a * b + c = 5° a|b ~ a_b _", "a * b + c = 5 ° a | b ~ a_b _"),
    "accents": ("café naïve’s Été façade.", "café naïve 's été façade"),
    "no glyph, no word": ("a😀b 😀 a\u200bb co\u00adop ❤\ufe0f", "a b a b coop ❤"),
    "white space": (" a\tb\n c\u00a0d\r\n", "a b c d"),
    "nothing": (" .\n", ""),
}


@pytest.mark.parametrize(("text", "words"), CASES.values(), ids=CASES)
def test_rule(text, words):
    assert tokenize(text) == words.split()


@given(st.text("aBn'’t.-,&/5 \x00\x01!:@", max_size=12))
def test_no_letter_is_lost(text):
    words = tokenize(text)
    assert not any(c.isspace() for word in words for c in word)
    assert all(words)
    letters = "".join(c for c in "".join(words) if c.isalnum())
    assert letters == "".join(c for c in text.lower() if c.isalnum())


@given(st.lists(st.sampled_from(["a dog", "it's", "the U.S.", "10:30", "t-shirt"]), max_size=4))
def test_texts_side_by_side_give_their_words(texts):
    assert tokenize("  ".join(texts)) == [word for text in texts for word in tokenize(text)]
