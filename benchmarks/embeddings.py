"""CPU time and memory of every method on embeddings, and of the authors' form of some.

    python benchmarks/embeddings.py                       the table of docs/performance.md
    python benchmarks/embeddings.py --growth              and twice the images, classes, prompts
    python benchmarks/embeddings.py --reference           and the authors' form at a smaller size
    python benchmarks/embeddings.py --methods stata,gda   these alone

Each method runs in a process of its own on synthetic arrays of float32. Figures are CPU time (user
and system, all threads), not wall time, so that they hold on a machine that is shared; idle threads
sleep, for spinning would count. Memory is the peak beyond the arrays.
Arrays that a method can do without it does not get, but for `prior`.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch starts its threads

import argparse
import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.linalg import cg
from torch import Tensor

from zeroshot import methods
from zeroshot.ops import normalize


@dataclass(frozen=True)
class Size:
    """Lengths of the arrays."""

    images: int = 10_000
    classes: int = 1000
    width: int = 512
    prompts: int = 80
    shots: int = 4
    """per class"""
    views: int = 64
    viewed: int = 250
    """images of methods that take views, which are 64 times as large"""
    anchors: int = 2000


def arrays(size: Size, names: set[str], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A problem that is neither solved nor hopeless."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype) / size.width**0.5

    centre, gap = normalize(noise(size.classes, size.width)), normalize(noise(size.width))

    def pictures(labels: Tensor) -> Tensor:
        rows = noise(len(labels), size.width)
        return normalize(rows.add_(centre[labels], alpha=0.3).add_(gap))

    owner = torch.arange(size.classes).repeat_interleave(size.shots)
    count = size.viewed if "views" in names else size.images
    made: dict[str, Callable[[], Tensor]] = {
        "images": lambda: pictures(torch.randint(size.classes, (count,), generator=generator)),
        "texts": lambda: normalize(
            noise(size.classes, size.prompts, size.width).mul_(0.7).add_(centre[:, None])
        ),
        "shots": lambda: pictures(owner),
        "shot_labels": lambda: owner,
        "bank": lambda: pictures(torch.randint(size.classes, (count,), generator=generator)),
        "prior": lambda: torch.full((size.classes,), 1 / size.classes, dtype=dtype),
        "parents": lambda: torch.arange(size.classes) // 10 * 10,
        "views": lambda: normalize(
            pictures(torch.randint(size.classes, (count,), generator=generator))[:, None]
            + noise(count, size.views, size.width).mul_(0.5)
        ),
        "anchor_images": lambda: pictures(torch.arange(size.anchors) % size.classes),
        "anchor_texts": lambda: normalize(
            noise(size.anchors, size.width) + centre[torch.arange(size.anchors) % size.classes]
        ),
    }
    return {name: make() for name, make in made.items() if name in names}


@dataclass(frozen=True)
class Cost:
    """Of one method at one size."""

    fit: float
    """CPU seconds"""
    score: float
    """CPU milliseconds per image"""
    memory: float
    """MB beyond the arrays"""


def resident(key: str) -> float:
    """`VmRSS` or `VmHWM` of this process, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def measured(call: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the CPU seconds it took."""
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def cost(name: str, size: Size) -> Cost:
    """Fit and score once; `product` and `products` are the matrix products alone."""
    if name in ("product", "products"):
        given = arrays(size, {"images", "texts"})
        keys = given["texts"].mean(1) if name == "product" else given["texts"].flatten(0, 1)
        torch.mm(given["images"][:8], keys[:8].T)

        def run() -> None:
            for part in torch.split(given["images"], 256):
                _ = part @ keys.T

        _, seconds = measured(run)
        return Cost(0.0, 1e3 * seconds / len(given["images"]), 0.0)
    method = methods.get(name)()
    needed = {
        verb: {a for a, must in methods.parameters(method, verb).items() if must or a == "prior"}
        for verb in ("fit", "scores")
    }
    given = arrays(size, needed["fit"] | needed["scores"])
    torch.mm(given["images"][:8], given["images"][:8].T)  # the library starts its threads
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = resident("VmRSS")
    fitted, fit = method, 0.0
    if needed["fit"]:
        fitted, fit = measured(lambda: method.fit(**{a: given[a] for a in needed["fit"]}))
    scores, seconds = measured(lambda: fitted.scores(**{a: given[a] for a in needed["scores"]}))
    assert scores.isfinite().all()
    return Cost(fit, 1e3 * seconds / len(scores), resident("VmHWM") - before)


def apart(call: Callable[..., Any], *given: Any) -> Any:
    """In a process of its own, so that neither memory nor a failure carries over."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def work() -> None:
        torch.set_num_threads(2)
        warnings.simplefilter("ignore")
        try:
            there.send(call(*given))
        except Exception as error:
            there.send(f"{type(error).__name__}: {error}")

    process = context.Process(target=work)
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return "died"
    finally:
        process.join()


def table(names: list[str], size: Size, growth: bool) -> None:
    """The costs, as Markdown."""
    half = {
        "images": replace(size, images=size.images // 2, viewed=size.viewed // 2),
        "classes": replace(size, classes=size.classes // 2),
        "prompts": replace(size, prompts=size.prompts // 2),
    }
    more = [f"{axis} x 2" for axis in half] if growth else []
    print(f"{size}, two threads, float32\n")
    print("| " + " | ".join(["method", "CPU-ms per image", "fit, CPU-s", "MB", *more]) + " |")
    print("|---|" + "---|" * (3 + len(more)))
    for name in names:
        found = apart(cost, name, size)
        if isinstance(found, str):
            print(f"| {name} | {found} |", flush=True)
            continue
        row = [f"{found.score:.3g}", f"{found.fit:.2g}", f"{found.memory:.0f}"]
        for axis in half if growth else []:
            less = apart(cost, name, half[axis])
            spent = found.score * (size.viewed if found.score and _viewed(name) else size.images)
            images = half[axis].viewed if _viewed(name) else half[axis].images
            row.append("-" if isinstance(less, str) else f"{spent / (less.score * images):.1f}")
        print(f"| {name} | " + " | ".join(row) + " |", flush=True)


def _viewed(name: str) -> bool:
    """Whether a method cannot do without views."""
    known = name in methods.names()
    return known and methods.parameters(methods.get(name), "scores").get("views", False)


# The authors' form of some methods, written from what their code does, not from their code.


def gaussians(given: dict[str, Tensor], stata: bool) -> Tensor:
    """StatA and TransCLIP with the images x classes x width tensors in the open."""
    X, W = given["images"], normalize(given["texts"].mean(1))
    n, d = X.shape
    C, k = len(W), 3
    best = (X @ X.T).topk(k + 1, 1)
    A = torch.zeros(n, n, dtype=X.dtype).scatter_(1, best.indices[:, 1:], best.values[:, 1:])
    A = A + A.T
    y = (100 * X @ W.T).softmax(1)
    z = y.clone()
    if stata:
        spread = torch.einsum("nc,ncd->d", z, (X[:, None] - W) ** 2) / n
        mu, var = W.clone(), spread.expand(C, d)
    else:
        top = z.topk(8, 0)
        mu = normalize(torch.stack([v @ X[i] for v, i in zip(*(m.T for m in top), strict=True)]))
        var = torch.full((C, d), 1 / d, dtype=X.dtype)
    for step in range(11):
        log = -0.5 * ((X[:, None] - mu) ** 2 / var).sum(2) - (
            0.5 * var.log().sum(1) if stata else 0
        )
        for _ in range(5):
            z = (y.log() + log / 50 + A @ z / (2 * k)).softmax(1)
        if step == 10:
            return z
        count = z.sum(0)
        mean = normalize(torch.einsum("nc,ncd->cd", z, X[:, None].expand(n, C, d)))
        hard = torch.bincount(z.argmax(1), minlength=C).to(X.dtype)
        b = (hard / (1 + hard))[:, None] if stata else torch.ones(C, 1, dtype=X.dtype)
        mu = normalize(b * mean + (1 - b) * W)
        square = torch.einsum("nc,ncd->cd", z, (X[:, None] - mu) ** 2)
        if stata:
            var = b * square / count[:, None] + (1 - b) * (spread + (W - mu) ** 2)
        else:
            var = (square.sum(0) / n).expand(C, d)
    raise AssertionError


def propagation(given: dict[str, Tensor]) -> Tensor:
    """ZLaP, a class after the other."""
    X, W = given["images"].numpy(), normalize(given["texts"].mean(1)).numpy()
    n, C = len(X), len(W)
    rows, columns, values = [], [], []
    for i in range(n):
        for j in np.argsort(-X @ X[i])[:5]:
            if j != i:
                rows.append(C + i), columns.append(C + j), values.append(max(0, X[i] @ X[j]))
        for c in np.argsort(-W @ X[i])[:5]:
            rows.append(C + i), columns.append(c), values.append(max(0, W[c] @ X[i]) ** 5)
    A = scipy.sparse.csr_matrix((values, (rows, columns)), shape=(C + n, C + n))
    A = A + A.T
    degree = np.asarray(A.sum(1)).ravel()
    root = scipy.sparse.diags(1 / np.sqrt(np.where(degree > 0, degree, 1)))
    system = scipy.sparse.identity(C + n) - 0.3 * root @ A @ root
    unit = np.eye(C + n)[:, :C]
    solved = [cg(system, unit[:, c], rtol=1e-12, maxiter=50)[0] for c in range(C)]
    return torch.from_numpy(np.stack(solved, 1)[C:])


def one_hot_cache(given: dict[str, Tensor]) -> Tensor:
    """Tip-Adapter with a one-hot matrix."""
    X, W, S = given["images"], normalize(given["texts"].mean(1)), given["shots"]
    Y = torch.nn.functional.one_hot(given["shot_labels"]).to(X.dtype)
    return 100 * X @ W.T + 1.17 * (-1.0 * (1 - X @ S.T)).exp() @ Y


def paired_channels(given: dict[str, Tensor]) -> Tensor:
    """APE with its loop over pairs of classes (their loop over pairs of rows as one product)."""
    X, W, S = given["images"], normalize(given["texts"].mean(1)), given["shots"]
    y = given["shot_labels"]
    C, d = W.shape
    rows = [torch.cat([W[c : c + 1], S[y == c]]) for c in range(C)]
    total = torch.zeros(d, dtype=X.dtype)
    for a in range(C):
        for b in range(C):
            if a != b:
                total += torch.einsum("id,jd->d", rows[a], rows[b])
    similarity = total / (C * (C - 1) * len(rows[0]) ** 2)
    kept = (0.3 * W.var(0) - 0.7 * similarity).topk((d + 1) // 2).indices
    x, s, w = (normalize(m[:, kept]) for m in (X, S, W))
    p = (s @ w.T).softmax(1)
    Y = torch.nn.functional.one_hot(y).to(X.dtype)
    surprise = (Y * ((Y + 1e-6) / (p + 1e-6)).log2()).sum(1, keepdim=True)
    return 100 * X @ W.T + 1.2 * (-(1 - x @ s.T)).exp() @ (Y * (0.2 * surprise).exp())


def pseudo_inverse(given: dict[str, Tensor]) -> Tensor:
    """GDA with a pseudo-inverse."""
    X, W, S = given["images"], normalize(given["texts"].mean(1)), given["shots"]
    y = given["shot_labels"]
    C, d = W.shape
    mu = torch.stack([S[y == c].mean(0) for c in range(C)])
    cov = (S - mu[y]).T.cov()
    eye = torch.eye(d, dtype=X.dtype)
    P = d * torch.linalg.pinv((len(S) - 1) * cov + cov.trace() * eye, hermitian=True)
    b = -0.5 * torch.einsum("cd,de,ce->c", mu, P, mu) - float(np.log(C))
    return 100 * X @ W.T + 0.1 * (X @ P @ mu.T + b)


def kernel_ridge(given: dict[str, Tensor]) -> Tensor:
    """ProKeR, solved with the texts on the right-hand side."""
    X, W, S = given["images"], normalize(given["texts"].mean(1)), given["shots"]
    Y = torch.nn.functional.one_hot(given["shot_labels"]).to(X.dtype)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-1.5 * (1 - a @ b.T)).exp()

    system = kernel(S, S) / 0.05 + torch.eye(len(S), dtype=X.dtype)
    return X @ W.T + kernel(X, S) @ torch.linalg.solve(system, Y - S @ W.T)


def mode_of_each(given: dict[str, Tensor]) -> Tensor:
    """MTA, an image after the other."""
    W = normalize(given["texts"].mean(1))
    modes = []
    for f in given["views"]:
        distance = ((f[:, None] - f) ** 2).sum(2)
        h2 = distance.sort(1).values[:, 1 : 1 + int(0.3 * (len(f) - 1))].mean(1) / 2
        P = (100 * f @ W.T).softmax(1)
        m, y = f[0], torch.full((len(f),), 1 / len(f), dtype=f.dtype)
        for _ in range(5):
            near = (-((f - m) ** 2).sum(1) / (2 * h2)).exp()
            for _ in range(5):
                before, y = y, ((near + 4 * (P @ P.T) @ y) / 0.2).softmax(0)
                if (y - before).norm() < 1e-6:
                    break
            for _ in range(5):
                near = (-((f - m) ** 2).sum(1) / (2 * h2)).exp()
                before, m = m, normalize((y * near) @ f)
                if (m - before).norm() < 1e-6:
                    break
        modes.append(m)
    return 100 * torch.stack(modes) @ W.T


def votes_of_each(given: dict[str, Tensor]) -> Tensor:
    """ZERO, an image after the other."""
    W = normalize(given["texts"].mean(1))
    rows = []
    for f in given["views"]:
        logits = 100 * f @ W.T
        p = logits.softmax(1)
        order = (-(p * p.clamp_min(1e-300).log()).sum(1)).argsort(stable=True)
        best, kept = logits.argmax(1)[order], int(0.3 * len(f))
        count = torch.bincount(best[:kept], minlength=len(W)).to(f.dtype)
        tied = count == count.max()
        other = next((c for c in best[kept:] if tied[c]), None) if tied.sum() > 1 else None
        if other is not None:
            count[other] += 1
        rows.append(count / count.sum())
    return torch.stack(rows)


def stream_of_lists(given: dict[str, Tensor]) -> Tensor:
    """TDA with lists, caches stacked anew for each image."""
    W = normalize(given["texts"].mean(1))
    C = len(W)
    caches: tuple[dict[int, list[Any]], dict[int, list[Any]]] = ({}, {})
    scores = []
    for x in given["images"]:
        logits = 100 * x @ W.T
        p = logits.softmax(0)
        entropy = float(-(p * p.clamp_min(1e-300).log()).sum())
        sure = 0.2 < entropy / np.log2(C) < 0.5
        for cache, room, wanted in zip(caches, (3, 2), (True, sure), strict=True):
            held = cache.setdefault(int(logits.argmax()), [])
            if wanted and (len(held) < room or entropy < held[-1][0]):
                held[:] = sorted([*held[: room - 1], (entropy, x, p)], key=lambda item: item[0])
        out = logits.clone()
        held = [(c, item) for c, items in caches[0].items() for item in items]
        near = (-5 * (1 - torch.stack([item[1] for _, item in held]) @ x)).exp()
        Y = torch.nn.functional.one_hot(torch.tensor([c for c, _ in held]), C).to(x.dtype)
        out += 2 * near @ Y
        doubts = [item for items in caches[1].values() for item in items]
        if doubts:
            near = (-1 * (1 - torch.stack([item[1] for item in doubts]) @ x)).exp()
            q = torch.stack([item[2] for item in doubts])
            out -= 0.117 * near @ ((q > 0.03) & (q < 1)).to(x.dtype)
        scores.append(out)
    return torch.stack(scores)


REFERENCES: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "stata": lambda given: gaussians(given, stata=True),
    "transclip": lambda given: gaussians(given, stata=False),
    "zlap": propagation,
    "gda": pseudo_inverse,
    "proker": kernel_ridge,
    "tip_adapter": one_hot_cache,
    "ape": paired_channels,
    "mta": mode_of_each,
    "zero": votes_of_each,
    "tda": stream_of_lists,
}


def beside(name: str, size: Size) -> tuple[float, float, float]:
    """CPU-ms per image of ours and of the authors' form, and the largest relative difference."""
    method = methods.get(name)(**({"cg_tol": 1e-12} if name == "zlap" else {}))
    needed = {
        verb: [a for a, must in methods.parameters(method, verb).items() if must]
        for verb in ("fit", "scores")
    }
    given = arrays(size, {*needed["fit"], *needed["scores"]}, torch.float64)
    torch.mm(given["images"][:8], given["images"][:8].T)

    def ours() -> Tensor:
        fitted = method.fit(**{a: given[a] for a in needed["fit"]}) if needed["fit"] else method
        found: Tensor = fitted.scores(**{a: given[a] for a in needed["scores"]})
        return found

    a, mine = measured(ours)
    b, theirs = measured(lambda: REFERENCES[name](given))
    apart = float((a - b).abs().max() / b.abs().max())
    return 1e3 * mine / len(a), 1e3 * theirs / len(a), apart


def comparison(names: list[str], size: Size) -> None:
    """Ours beside the authors' form, as Markdown."""
    print(f"\n{size}, two threads, float64\n")
    print("| method | CPU-ms per image | authors' form | times | largest relative difference |")
    print("|---|---|---|---|---|")
    for name in names:
        found = apart(beside, name, size)
        if isinstance(found, str):
            print(f"| {name} | {found} |", flush=True)
            continue
        mine, theirs, difference = found
        print(
            f"| {name} | {mine:.3g} | {theirs:.3g} | {theirs / mine:.1f} | {difference:.0e} |",
            flush=True,
        )
        assert difference < 1e-9, name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--methods", help="names, by comma")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--reference", action="store_true")
    for field in ("images", "classes", "width", "prompts", "shots", "views", "viewed", "anchors"):
        parser.add_argument(f"--{field}", type=int, default=getattr(Size(), field))
    given = vars(parser.parse_args())
    size = Size(**{name: given[name] for name in vars(Size())})
    every = [name for name in methods.names() if hasattr(methods.get(name), "scores")]
    chosen = given["methods"].split(",") if given["methods"] else ["product", "products", *every]
    table(chosen, size, given["growth"])
    if given["reference"]:
        small = Size(images=600, classes=100, width=64, prompts=4, viewed=60)
        comparison([name for name in chosen if name in REFERENCES], small)


if __name__ == "__main__":
    main()
