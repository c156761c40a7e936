"""Time and memory of `zeroshot tune` after the images are embedded, by stage and by method.

    python benchmarks/tune_time.py [--images 2000] [--labels 50] [--shots 16] [--budget 60]

Rows of two encoders of 1280 and 384 numbers with 1250 anchors, drawn at random around class means;
prompts as many as `simple`, `openai` and `none` have. One thread.
"""

import argparse
import resource
import time
from collections import Counter
from contextlib import contextmanager

import torch

from zeroshot import methods
from zeroshot.model_set.coupled_encoder import calibrate
from zeroshot.ops import normalize
from zeroshot.tasks.tuning import tune as choice
from zeroshot.tasks.tuning.tuning_data import COUPLINGS, TuningData
from zeroshot.tuning import selection
from zeroshot.tuning.problem import JointRows, PromptRows, TuningProblem

WIDTHS = (1280, 384)
ANCHORS = 1250
PROMPTS = {"simple": 7, "openai": 80, "none": 1}
SHARED = 64
"""Numbers that both encoders see."""


@contextmanager
def timed(seconds, name):
    begin = time.process_time()
    yield
    seconds[name] += time.process_time() - begin


def watch(seconds, owner, function, name):
    """Time all calls of a function, less those of what it calls if these are watched too."""
    called = getattr(owner, function)

    def call(*given, **more):
        before = sum(seconds.values())
        begin = time.process_time()
        found = called(*given, **more)
        inside = sum(seconds.values()) - before
        what = name(*given) if callable(name) else name
        seconds[what] += time.process_time() - begin - inside
        return found

    setattr(owner, function, call)


def report_memory(owner):
    """Print each fit that raises the peak by more than 10 MB."""
    called = owner.logits

    def logits(problem, tuned, train, test):
        before = peak()
        found = called(problem, tuned, train, test)
        if peak() > before + 0.01:
            print(f"{tuned.name}: {before:.2f} to {peak():.2f} GB", flush=True)
        return found

    owner.logits = logits


def peak():
    """Gigabytes until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def data_of(images, labels, shots, seconds):
    """Random rows in the default coupling and in each of the others."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    seen = [drawn(SHARED, width) for width in WIDTHS]
    centres = drawn(labels, SHARED)
    classes = torch.cat([torch.arange(labels).repeat(shots), torch.arange(images) % labels])
    rows = normalize((centres[classes] + 1.5 * drawn(len(classes), SHARED)) @ seen[0])
    anchors = drawn(ANCHORS, SHARED)
    pairs = [normalize(anchors @ own + drawn(ANCHORS, own.shape[1])) for own in seen]
    texts = {
        name: normalize((centres[:, None] + drawn(labels, count, SHARED)) @ seen[1])
        for name, count in PROMPTS.items()
    }
    spaces = []
    with timed(seconds, "couple"):
        for name in (None, *COUPLINGS):
            fitted = methods.configure(name or "auto", {}).fit(*pairs)
            prompts = {}
            for key, own in texts.items():
                joint = normalize(fitted.map_texts(own.flatten(0, 1)))
                prompts[key] = PromptRows(joint.view(*own.shape[:2], -1))
            scale = calibrate(fitted, *pairs)
            spaces.append(JointRows(name, normalize(fitted.map_images(rows)), prompts, scale))
    known = labels * shots
    names = [str(i) for i in range(len(rows))]
    problem = TuningProblem(classes[:known], spaces, rows)
    return TuningData(problem, names[:labels], names[:known], names[known:], {})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--memory", action="store_true", help="which fits raise the peak")
    given = parser.parse_args()
    torch.set_num_threads(1)
    stages, by_method = Counter(), Counter()
    memory = {"begin": peak()}
    begin = time.process_time()
    data = data_of(given.images, given.labels, given.shots, stages)
    memory["couple"] = peak()
    drawn = time.process_time() - begin - stages["couple"]
    if given.memory:
        report_memory(TuningProblem)
    watch(by_method, TuningProblem, "logits", lambda problem, tuned, *_: tuned.method)
    watch(stages, selection._Loop, "choose", lambda loop, without, _: (
        "measure" if without else "choose"
    ))  # fmt: skip
    watch(stages, selection._Loop, "outer", "measure")
    watch(stages, selection._Loop, "curve", "learning curve")
    watch(stages, choice, "suggest", "suggest")
    request = choice.TuneRequest(budget=given.budget, suggest=10)
    begin = time.process_time()
    recipe = choice.tune(data, request, lambda *_: None)
    total = stages["couple"] + time.process_time() - begin
    stages["other"] = total - sum(stages.values())
    for name, seconds in stages.most_common():
        print(f"{name:16} {seconds:7.1f} s")
    print(f"{'all':16} {total:7.1f} s   ({drawn:.1f} s more to draw the rows)")
    print("of which " + ", ".join(f"{n} {s:.1f}" for n, s in by_method.most_common() if s > 0.05))
    memory["tune"] = peak()
    print("peak memory after " + ", ".join(f"{n} {gb:.2f} GB" for n, gb in memory.items()))
    print(f"{len(recipe.tried)} tried, left out: {', '.join(recipe.left_out) or 'none'}")
    print(recipe.verdict)


if __name__ == "__main__":
    main()
