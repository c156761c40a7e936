"""What the caller sets in torch changes no embedding, and threads may share a model."""

import importlib
import pkgutil
import random
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from PIL import Image

import zeroshot
from tests.typecheck import checked
from zeroshot import models
from zeroshot.models.deferred import Deferred
from zeroshot.models.isolation import FrozenModel, SharedChange, once, own_state

LABELS = ["red heart", "blue star", "green ring"]


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def matmul_precision(precision):
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: default_device("meta"),
    "device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "matmul": lambda: matmul_precision("medium"),
    "deterministic": deterministic,
}


def as_the_caller_sees_it():
    """Everything that the states above set."""
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


def noise(seed, size=48):
    values = np.random.default_rng(seed).integers(0, 256, (size, size + 9, 3), np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def pocket():
    return zeroshot.load("pocket", device="cpu")


def rows_of(images, models, templates=None, **more):
    """Numbers of three functions: of a model, of prompts, of a transductive method."""
    embedded = zeroshot.embed(images, models=models, **more)
    more["templates"] = templates
    labelled = zeroshot.classify(images, LABELS, models=models, **more)
    scored = zeroshot.classify(images, LABELS, models=models, method="transclip", **more)
    return [
        [result.embedding for result in embedded],
        [sorted((x.label, x.score, x.cosine) for x in result.labels) for result in labelled],
        [sorted((x.label, x.score) for x in result.labels) for result in scored],
    ]


@pytest.mark.parametrize("state", STATES)
def test_rows_and_cache_are_those_of_the_plain_state(state, pocket):
    images = [noise(0), noise(1)]
    expected = rows_of(images, pocket, cache=False)
    with STATES[state]():
        before = as_the_caller_sees_it()
        assert rows_of(images, pocket) == expected
        assert as_the_caller_sees_it() == before
    assert rows_of(images, pocket) == expected  # now from the cache


@pytest.mark.parametrize("state", STATES)
def test_models_of_their_own_are_untouched_too(state, pocket):
    """Without a function of `zeroshot` around them; also if the state was on at the first use."""
    texts = [f"a red heart and {n} stars" for n in range(70)]  # as many as go through a tree
    language_model, image = pocket.language_model, noise(2)
    tokens = torch.tensor([language_model.encode("a red heart")])
    expected = [
        pocket.encoder.encode_images([image]),
        pocket.encoder.encode_texts(texts),
        pocket.encoder.session()(texts[:3]),
        language_model.logits(language_model.forward(tokens).hidden[:, -1]),
        pocket.coupled.encode_images([image]),
    ]
    with STATES[state]():
        fresh = zeroshot.load("pocket", device="cpu")
        session, language_model = fresh.encoder.session(), fresh.language_model
        for _ in range(2):
            found = [
                fresh.encoder.encode_images([image]),
                fresh.encoder.encode_texts(texts),
                session(texts[:3]),
                language_model.logits(language_model.forward(tokens).hidden[:, -1]),
                fresh.coupled.encode_images([image]),
            ]
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == torch.float32
                np.testing.assert_array_equal(one.numpy(), other.numpy())
    after = session([*texts[:3], "a new text"])  # memory that was made in the state goes on
    np.testing.assert_array_equal(after[:3].numpy(), expected[2].numpy())


def test_an_error_leaves_the_callers_state(pocket):
    with default_dtype(torch.float64), torch.autocast("cpu", dtype=torch.bfloat16):
        before = as_the_caller_sees_it()
        with pytest.raises(zeroshot.errors.UserError):
            zeroshot.classify(noise(0), LABELS, models=pocket, method="chils")
        assert as_the_caller_sees_it() == before


def test_what_generates_images_runs_in_the_callers_state(pocket):
    seen = []

    def images():
        seen.append(torch.get_default_dtype())
        yield noise(0)

    with default_dtype(torch.float64):
        zeroshot.embed(images(), models=pocket)
    assert seen == [torch.float64]


def test_the_plain_state_costs_nothing_that_one_sees():
    with own_state():
        start = time.perf_counter()
        for _ in range(1000):
            with own_state():
                pass
        assert time.perf_counter() - start < 1


# Threads


@pytest.fixture
def switching():
    """Threads change places a thousand times as often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


def together(*works):
    """Run all at once; the errors of each."""
    errors, ready = [], threading.Barrier(len(works))

    def run(work):
        ready.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_a_tokenizer_cuts_off_for_nobody_else(pocket, switching):
    encoder, long = pocket.encoder, "word " * 200
    [count] = encoder.count_tokens([long])
    assert count > encoder.context_length
    texts = [[f"a {word} {i}" for i in range(4)] for word in ("heart", "star", "ring")]
    expected = [encoder.encode_texts(own) for own in texts]

    def encode(number):
        for _ in range(15):
            found = encoder.encode_texts(texts[number])
            np.testing.assert_array_equal(found.numpy(), expected[number].numpy())

    def measure():
        for _ in range(60):
            assert encoder.count_tokens([long]) == [count]

    together(*(lambda n=n: encode(n) for n in range(3)), measure, measure)


def test_threads_load_a_set_once_and_get_the_rows_of_one_thread(pocket):
    images, found = [noise(3), noise(4)], {}
    expected = {
        n: rows_of(images, pocket, cache=False, templates=f"{n} of a {{}}") for n in range(3)
    }
    fresh = zeroshot.load("pocket", device="cpu")
    encoders = set()

    def work(number):
        encoders.add(id(fresh.encoder))
        own = {"templates": f"{number % 3} of a {{}}"}
        found[number] = rows_of(images, fresh, cache=False, **own)

    together(*(lambda n=n: work(n) for n in range(6)))
    assert len(encoders) == 1
    assert found == {n: expected[n % 3] for n in range(6)}


def test_a_shared_change_ends_with_the_last_that_wants_it():
    state = ["theirs"]

    def change():
        before = state[0]
        state[0] = "ours"
        return lambda: state.__setitem__(0, before)

    shared, inside, leave = SharedChange(change), threading.Event(), threading.Event()

    def other():
        with shared():
            inside.set()
            leave.wait()
            assert state == ["ours"]

    thread = threading.Thread(target=other)
    with shared():
        thread.start()
        inside.wait()
    assert state == ["ours"]  # the other thread is in it still
    leave.set()
    thread.join()
    assert state == ["theirs"]


def test_a_thread_in_another_default_dtype_gets_it_back(pocket):
    """The dtype is the whole process's: float32 while models run, the caller's before and after."""
    with default_dtype(torch.float64):
        together(*(lambda n=n: zeroshot.embed(noise(n), models=pocket) for n in range(4)))
        assert torch.zeros(1).dtype == torch.float64


def test_once_is_once():
    class Holder:
        made = 0

        @once
        def value(self):
            time.sleep(0.05)
            self.made += 1
            return self.made

    holder, seen = Holder(), []
    together(*(lambda: seen.append(holder.value) for _ in range(4)))
    assert seen == [1, 1, 1, 1]
    assert vars(holder)["value"] == 1


VERBS = {"encode_images", "encode_texts", "encode_prompts", "encode_frames", "forward"}
VERBS |= {"detect", "maps", "write", "answer", "answer_regions", "score_pairs"}


def test_every_model_is_isolated():
    """Each class of the folder with a model's method, but for the protocols that describe them."""
    found = set()
    for module in pkgutil.walk_packages(models.__path__, "zeroshot.models."):
        if module.name != "zeroshot.models.base":
            for name, kind in vars(importlib.import_module(module.name)).items():
                is_model = isinstance(kind, type) and VERBS & vars(kind).keys()
                if is_model and kind.__module__ == module.name and "Linear" not in name:
                    found.add(kind)
    assert len(found) > 10
    isolated = (FrozenModel, Deferred)  # which only calls another
    assert [kind.__name__ for kind in found if not issubclass(kind, isolated)] == []


def test_each_state_changes_something():
    plain = as_the_caller_sees_it()
    for enter in STATES.values():
        with enter():
            assert as_the_caller_sees_it() != plain


def test_the_checks_of_types_leave_the_random_numbers_of_the_process_alone():
    """They run in threads too, and hypothesis refuses numbers that change while it draws."""

    @checked
    def first(items: list[int]) -> int:
        return items[0]

    before = random.getstate()
    assert first([1, 2]) == 1
    with pytest.raises(BeartypeCallHintParamViolation):
        first(["a"])
    assert random.getstate() == before
