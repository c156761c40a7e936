"""Imports point down: each folder of the package sees the floors below it, and no circle is left.

The list has folders, and the ten files that stand beside them; a new file in a folder changes
nothing here. A folder includes the folders in it. Two modules of `output` are on a lower floor than
the folder: everything writes files by them.
"""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "zeroshot"
FLOORS = [
    {"boxes", "errors", "ops", "packaging"},
    {"metrics", "output.atomic", "output.holders"},
    {"models", "inputs"},
    {"trace", "images", "prompts"},
    {"decoding", "results"},
    {"methods", "output"},
    {"ranking", "cache", "tuning"},
    {"model_set"},
    {"datasets", "inference"},
    {"tasks"},
    {"distributed", "evaluation"},
    {"report", "api"},
    {"video", "commands", "adapters"},
    {"serving"},
    {"cli"},
    {"__main__"},
]
METHODS_SEE = {
    *{"errors", "ops", "metrics", "packaging"},
    *{"decoding", "methods", "models.base", "output.atomic", "trace"},
}
ONLY_IN_MODELS = {"transformers", "open_clip", "timm", "torchvision", "huggingface_hub"}
MOST_FILES = 12
TWICE = {
    "classification": "metrics of the task, and the task",
    "captioning": "metrics of the task, and the task",
    "model_set": "the folder is named after the class that its main file defines",
    "evaluation": "as model_set",
}
"""Names of a module that a folder has too, and why."""
SHORTHANDS = {"Array", "Bools", "Rows", "Tokens", "Words"}
"""Array types that several modules shorten alike, each for its own signatures."""


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports():
    """Each module with each name it imports: a module of ours, or what another package has."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield module, full if full in MODULES else node.module
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield module, alias.name


def room(module):
    """`zeroshot.models.hf.common` -> `models`; the package itself -> ''."""
    return module.split(".")[1] if "." in module else ""


def floor(module):
    names = (module.removeprefix("zeroshot."), room(module))
    found = [i for name in names for i, floor in enumerate(FLOORS) if name in floor]
    assert found, f"'{module}' has no floor; a new folder needs one in FLOORS, a new file does not"
    return found[0]


OURS = [(source, target) for source, target in imports() if target in MODULES]


def test_imports_point_down():
    wrong = [
        f"{source} imports {target}"
        for source, target in OURS
        if room(source) != room(target)
        and room(target)  # the package's own face brings nothing but its version
        and floor(target) >= floor(source)
    ]
    assert not wrong


def test_no_circle():
    targets = {module: {t for s, t in OURS if s == module and t != module} for module in MODULES}
    done, path = set(), []

    def walk(module):
        assert module not in path, f"a circle: {' > '.join([*path, module])}"
        if module not in done:
            path.append(module)
            for target in targets[module]:
                walk(target)
            done.add(path.pop())

    for module in MODULES:
        walk(module)


def test_methods_are_functions_of_tensors():
    wrong = [
        f"{source} imports {target}"
        for source, target in OURS
        if room(source) == "methods"
        and room(target) not in METHODS_SEE
        and target.removeprefix("zeroshot.") not in METHODS_SEE
    ]
    assert not wrong


def test_model_libraries_stay_in_models():
    wrong = [
        f"{source} imports {target}"
        for source, target in imports()
        if target.split(".")[0] in ONLY_IN_MODELS and room(source) != "models"
    ]
    assert not wrong


WRITES = {"output.atomic", "output.appended", "output.object_store", "cache.segments"}
"""Modules that open files for writing: whole, appended to, a copy for a store, the cache's own."""
WRITING = {"write_text", "write_bytes", "rename", "savefig", "save_file", "savez", "mkstemp"}


def opens_for_writing(call):
    """Whether a call opens a file for writing, or writes one: `path.open("wb")`, `write_text`."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    modes += [k.value.value for k in call.keywords if k.arg == "mode"]
    if name == "open" and not any(k.arg == "fileobj" for k in call.keywords):
        return any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)
    to = ast.unparse(call.args[0]) if call.args else ""
    return name in WRITING and to not in ("file", "data")


def test_files_are_written_in_few_places():
    """So that a full disk, a kill, and a file that others change are seen to everywhere."""
    found = [
        f"{module}: {ast.unparse(node)[:60]}"
        for module, path in MODULES.items()
        if module.removeprefix("zeroshot.") not in WRITES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and opens_for_writing(node)
    ]
    assert not found


def test_no_folder_is_a_corridor():
    files = Counter(path.parent.relative_to(PACKAGE).as_posix() for path in MODULES.values())
    assert not {f: n for f, n in files.items() if n > MOST_FILES and f != "methods"}


def test_a_module_has_a_name_of_its_own():
    names = Counter(path.stem for path in MODULES.values() if path.stem != "__init__")
    assert not [name for name, count in names.items() if count > 1]
    folders = {path.parent.name for path in MODULES.values() if path.parent != PACKAGE}
    assert names.keys() & folders == TWICE.keys()


def types_in(path):
    """Public classes of a module, and its public names of types; type variables are neither."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            variable = "TypeVar" in ast.unparse(node.value)
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper() and not variable:
                yield name


def test_a_public_type_has_a_name_of_its_own():
    defined = Counter(name for path in MODULES.values() for name in types_in(path))
    assert {name for name, count in defined.items() if count > 1} == SHORTHANDS


def test_faces_define_nothing():
    """A package's `__init__` says what the folder is for, and hands names on."""
    wrong = [
        module
        for module, path in MODULES.items()
        if path.name == "__init__.py"
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]
    assert not wrong


def test_a_face_hides_no_module():
    """`from zeroshot.metrics import bootstrap` would be one or the other by what came before."""
    for stub in PACKAGE.rglob("__init__.pyi"):
        names = {
            alias.asname or alias.name
            for node in ast.parse(stub.read_text("utf-8")).body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        assert not names & {path.stem for path in stub.parent.glob("*.py")}, stub
