"""The structure of the code: which room imports which, no cycles, sizes, and where Ray and torch may be named.

A *room* is a folder of a package; what lies beside the rooms is a ground file, below all of them, or a door, above.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "train", "tune", "serve", "infra")
MAY_IMPORT = {  # room or file -> the others that it may import; a package's own ground files are free to all its rooms
    "engine": "",
    "engine.specimens": "",
    "engine.signals": "engine.specimens engine.store",
    "engine.store": "engine.specimens",
    "engine.relations": "engine.specimens engine.signals",
    "engine.simulated": "engine.specimens engine.signals",
    "engine.formats": "engine.specimens engine.store",
    "engine.batches": "engine.specimens engine.signals engine.store",
    "engine.curation": "engine.specimens engine.signals engine.store engine.relations",
    "engine.ingest": "engine.specimens engine.signals engine.store engine.relations engine.formats",
    "engine.main": "engine.store engine.relations engine.formats engine.ingest engine.curation",
    "train": "engine engine.specimens engine.store",
    "train.models": "engine engine.specimens engine.signals engine.store",
    "train.reference": "engine engine.specimens engine.signals engine.store engine.formats engine.batches",
    "train.losses": "engine engine.specimens train.models",
    "train.photo_head": "engine engine.specimens engine.store train.reference",
    "train.inference": "engine.specimens engine.store train.reference",
    "train.learning": "engine engine.specimens engine.batches train.models train.losses",
    "train.evaluation": "engine engine.specimens engine.signals engine.store engine.batches train.models "
    "train.reference train.inference",
    "train.pages": "engine engine.specimens engine.store engine.signals engine.relations engine.batches train.models "
    "train.reference train.inference train.evaluation",
    "train.run": "engine engine.specimens engine.store engine.formats engine.batches engine.ingest train.models "
    "train.inference train.evaluation train.learning",
    "train.main": "engine engine.batches train.models train.pages train.run",
    "train.evaluate": "engine train.models train.pages train.run",
    "train.tasks": "engine engine.specimens engine.signals engine.batches train.evaluation",
    "train.benchmark": "engine engine.batches train.models train.tasks",
    "train.embed": "engine engine.specimens engine.signals engine.store engine.formats engine.batches train.models",
    "train.photos": "engine engine.specimens train.embed train.photo_head",
    "tune": "engine engine.specimens engine.batches train train.models train.pages train.run",
    "serve.answers": "engine engine.specimens engine.signals engine.store engine.curation train train.models "
    "train.reference train.inference",
    "serve.models": "engine engine.specimens engine.signals engine.store train train.models train.inference train.run",
    "serve.bulk": "engine engine.specimens engine.signals engine.store engine.formats train.models train.reference "
    "train.inference "
    "serve.answers "
    "serve.models",
    "serve.http": "engine engine.specimens engine.signals engine.store engine.formats train.models train.reference "
    "serve.answers serve.models",
    "serve": "engine engine.specimens engine.store engine.formats train train.models train.reference train.inference "
    "train.run train.evaluation serve.answers serve.models serve.bulk serve.http",
    "infra": "engine engine.store engine.batches train train.run",
}
DOORS = {"engine.main", "train.main", "train.evaluate", "train.benchmark", "train.embed", "train.photos"}
NAMES_RAY = {  # the only product files that import Ray, wherever in them
    "engine/ray_seams.py",
    "engine/batches/pipeline.py",
    "engine/ingest/job.py",
    "engine/curation/job.py",
    "engine/main.py",
}
NAMES_TORCH_IN_ENGINE = {"engine/batches/collate.py"}
MAX_FILES, MAX_LINES, MAX_FUNCTION, MAX_PARAMETERS = 20, 350, 60, 6
OF_ONE_KIND = {"engine/formats"}  # a file a format: more than MAX_FILES of one kind are no disorder


def _files() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in _files()}


def room_of(module: str) -> str:
    """Return the room that a module lies in: a door itself, a folder of a package, else the package."""
    first_two = ".".join(module.split(".")[:2])
    return first_two if first_two in DOORS or (ROOT / first_two.replace(".", "/")).is_dir() else module.split(".")[0]


def imported(path: Path) -> set[str]:
    """Return all dotted names that a file imports, wherever in it, those of other projects too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def our_modules(path: Path) -> set[str]:
    """Return the modules of this project that a file imports."""
    found = set()
    for name in imported(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found |= {name} - {""}
    return found


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_rooms_import_only_the_rooms_that_they_may() -> None:
    for module, path in MODULES.items():
        own = room_of(module)
        allowed = {*MAY_IMPORT[own].split(), own, own.split(".")[0]}
        late = {name for name in our_modules(path) if room_of(name) not in allowed}
        assert not late, f"{module} in {own} imports {sorted(late)}"


def test_no_room_may_import_one_that_may_import_it() -> None:
    below = {room: set(names.split()) for room, names in MAY_IMPORT.items()}
    order: list[str] = []
    while len(order) < len(below):
        free = [room for room in below if room not in order and below[room] <= set(order) | {room}]
        assert free, f"a circle among {sorted(set(below) - set(order))}"
        order += free


def test_no_file_imports_one_that_imports_it() -> None:
    below = {module: our_modules(path) - {module} for module, path in MODULES.items()}
    done: set[str] = set()
    while len(done) < len(below):
        free = {module for module in below if module not in done and below[module] <= done}
        assert free, f"a circle among {sorted(set(below) - done)}"
        done |= free


def test_ray_and_torch_stay_where_they_belong_in_engine() -> None:
    for path in sorted((ROOT / "engine").rglob("*.py")):
        used = {name.split(".")[0] for name in imported(path)}
        place = path.relative_to(ROOT).as_posix()
        assert "torch" not in used or place in NAMES_TORCH_IN_ENGINE, f"{place} imports torch"
        assert "ray" not in used or place in NAMES_RAY, f"{place} imports ray"


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_files_functions_and_parameters_are_small(package: str) -> None:
    for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
        count = len(list(folder.glob("*.py")))
        one_kind = folder.relative_to(ROOT).as_posix() in OF_ONE_KIND
        assert count <= MAX_FILES or one_kind, f"{folder} has {count} files, allowed {MAX_FILES}"
    for path in sorted((ROOT / package).rglob("*.py")):
        place = path.relative_to(ROOT)
        assert len(path.read_text().splitlines()) <= MAX_LINES, f"{place} has more than {MAX_LINES} lines"
        for one in functions(path):
            assert one.end_lineno is not None
            length = one.end_lineno - one.lineno + 1
            assert length <= MAX_FUNCTION, f"{place}: {one.name} has {length} lines, allowed {MAX_FUNCTION}"
            given = one.args
            names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            assert count <= MAX_PARAMETERS, f"{place}: {one.name} has {count} parameters, allowed {MAX_PARAMETERS}"
