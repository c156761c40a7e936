"""Methods as `zeroshot methods` shows them, read from their files: nothing is imported for it."""

import ast
import functools
import importlib.util
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from zeroshot.errors import UserError, unknown
from zeroshot.methods._plugins import distribution_of, load_plugin, plugins
from zeroshot.methods._registry import PACKAGE, built_in, names, options as known_options

VERBS = {
    **{"scores": "classify", "caption": "caption", "attend": "segment"},
    "decompose": "explain",
}
"""What a class does if it, or a class that it inherits from, has such a function."""


@dataclass(frozen=True)
class Option:
    """One option of a method: its default and the possible values or type, in words."""

    name: str
    kind: str
    default: Any
    about: str


@dataclass(frozen=True)
class Description:
    """A method as `zeroshot methods` shows it."""

    name: str
    title: str
    """First line of the file's docstring."""
    about: str
    """The whole docstring: source, equation, departures."""
    does: tuple[str, ...]
    """`classify`, `caption`, `segment`, `explain`."""
    options: tuple[Option, ...]


def describe(name: str) -> Description:
    """The docstring, the tasks and the options of the method called `name`.

    The text of an option is the string literal below it in the class.
    """
    own = built_in()
    if name not in own:
        others = plugins(tuple(own))
        if name not in others:
            raise unknown("method", name, names())
        return _of_plugin(name, others[name])
    module = _Module.read(name)
    wanted = name.replace("_", "")
    classes = (node for node in module.tree.body if isinstance(node, ast.ClassDef))
    lineage = list(_lineage(module, next(c for c in classes if c.name.lower() == wanted)))
    about = inspect.cleandoc(ast.get_docstring(module.tree) or "")
    functions = {
        node.name for _, c in lineage for node in c.body if isinstance(node, ast.FunctionDef)
    }
    options: dict[str, Option] = {}
    for owner, node in reversed(lineage):
        for option in _options(owner, node):
            options[option.name] = option
    does = tuple(task for verb, task in VERBS.items() if verb in functions)
    return Description(name, about.partition("\n")[0], about, does, tuple(options.values()))


def _of_plugin(name: str, entry: Any) -> Description:
    """A method of another distribution, which is imported; one that cannot be says why."""
    try:
        kind = load_plugin(entry)
    except UserError as error:
        return Description(name, str(error), str(error), (), ())
    about = f"{inspect.getdoc(kind) or name}\n\nof the distribution {distribution_of(entry)}"
    does = tuple(task for verb, task in VERBS.items() if hasattr(kind, verb))
    options = [
        Option(n, inspect.formatannotation(f.type), None if f.default is MISSING else f.default, "")
        for n, f in known_options(kind).items()
    ]
    return Description(name, about.partition("\n")[0], about, does, tuple(options))


@dataclass(frozen=True)
class _Module:
    """A file of this folder."""

    tree: ast.Module

    @classmethod
    def read(cls, name: str) -> "_Module":
        spec = importlib.util.find_spec(f"{PACKAGE}.{name}")
        assert spec is not None
        assert spec.origin is not None
        return cls(_parsed(spec.origin))

    def find(self, name: str) -> "tuple[_Module, ast.stmt] | None":
        """The class or the constant of this name, here or where it is imported from."""
        for node in self.tree.body:
            match node:
                case ast.ImportFrom(module=str(module)) if module.startswith(f"{PACKAGE}."):
                    if any(alias.name == name for alias in node.names):
                        return _Module.read(module.rpartition(".")[2]).find(name)
                case ast.ClassDef(name=found) if found == name:
                    return self, node
                case ast.Assign(targets=[ast.Name(id=found)]) if found == name:
                    return self, node
        return None


@functools.cache
def _parsed(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def _lineage(module: _Module, node: ast.ClassDef) -> Iterator[tuple[_Module, ast.ClassDef]]:
    """A class and those that it inherits from, in this folder."""
    yield module, node
    for base in node.bases:
        found = module.find(base.id) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found[1], ast.ClassDef):
            yield from _lineage(found[0], found[1])


def _options(module: _Module, node: ast.ClassDef) -> Iterator[Option]:
    """The fields of a dataclass itself, but for the learned ones; the text is the literal below."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return
    for field, below in itertools.pairwise([*node.body, ast.Pass()]):
        match field:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=hint, value=value):
                if name.endswith("_") or ast.unparse(hint).startswith("ClassVar"):
                    continue
                text = ""
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    text = inspect.cleandoc(str(below.value.value))
                yield Option(name, _kind(module, hint), _value(module, value), text)


def _kind(module: _Module, hint: ast.expr) -> str:
    """`int`, `float|none` or the texts of a Literal."""
    match hint:
        case ast.BinOp(left=left, right=ast.Constant(value=None)):
            return f"{_kind(module, left)}|none"
        case ast.Subscript(value=ast.Name(id="Literal")):
            values = ast.literal_eval(hint.slice)
            return "|".join(values) if isinstance(values, tuple) else str(values)
        case ast.Name(id=name):
            found = module.find(name)
            if found is not None and isinstance(found[1], ast.Assign):
                return _kind(found[0], found[1].value)
    return ast.unparse(hint)


def _value(module: _Module, value: ast.expr | None) -> Any:
    """A default: a literal, or a constant of a file."""
    if isinstance(value, ast.Name) and (found := module.find(value.id)) is not None:
        assert isinstance(found[1], ast.Assign)
        return _value(found[0], found[1].value)
    return None if value is None else ast.literal_eval(value)
