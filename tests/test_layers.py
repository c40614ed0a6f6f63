"""The one-way order of the code: packages engine < train < {tune, serve}, and files within a package as listed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "engine": set(),
    "train": {"engine"},
    "tune": {"engine", "train"},
    "serve": {"engine", "train"},
    "infra": {"engine", "train", "tune", "serve"},
}
ORDER = {
    "engine": "commandline html taxonomy names schema config image_headers images barcodes degrade damage captions "
    "sampling storage tars shards "
    "substrings containment splits datasets collate prepare stream tasks pipeline "
    "ingest_report ingest_plan ingest_shard ingest description curation check main",
    "train": "config recipes models dist loss_masks loss_views loss_sums loss_hierarchy losses metrics optim "
    "checkpoint commits tracking progress gauges reference evaluation gradient_cache lane_dropout flops loop "
    "worker trainer main evaluate",
    "serve": "answer query candidates compose predictor registry sources columns plan answering result bulk library "
    "card pyfunc export settings directory examples batching bodies host metrics service schemas document api app "
    "front main",
    "tune": "spaces ledger search capacity trial halving finalists plots records outcome sweep main",
}


def imports(path: Path) -> set[str]:
    """Dotted modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_lies_below(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        ours = {name.split(".")[0] for name in imports(path)} & set(MAY_IMPORT)
        assert ours <= MAY_IMPORT[package] | {package}, f"{path.relative_to(ROOT)} imports {ours}"


@pytest.mark.parametrize("package", ORDER)
def test_files_import_only_files_listed_before_them(package: str) -> None:
    place = {name: i for i, name in enumerate(ORDER[package].split())}
    for path in (ROOT / package).rglob("*.py"):
        own = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in place, f"{path.relative_to(ROOT)} has no place in the order of {package}/"
        used = {name.split(".")[1] for name in imports(path) if name.startswith(f"{package}.")}
        late = {name for name in used if name in place and place[name] > place[own]}
        assert not late, f"{path.relative_to(ROOT)} imports {sorted(late)}, listed after it"


def test_torch_and_ray_stay_where_they_belong() -> None:
    allowed = {"torch": {"collate.py"}, "ray": {"tasks.py", "pipeline.py", "ingest.py", "check.py", "main.py"}}
    for path in (ROOT / "engine").rglob("*.py"):
        used = {name.split(".")[0] for name in imports(path)}
        for library, files in allowed.items():
            assert library not in used or path.name in files, f"{path.relative_to(ROOT)} imports {library}"
