"""Dependencies point one way. What is imported is read from the sources, lazy imports included."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Imports = dict[str, set[str]]


def module_name(path: Path, above: Path) -> str:
    parts = path.relative_to(above).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str) -> Iterator[str]:
    """Yield the dotted name of everything that a source imports, at any depth of it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(sources: Mapping[str, str]) -> Imports:
    """Return what every module imports; a name taken from one of them counts as that module."""

    def module(name: str) -> str:
        while name not in sources and "." in name and name.rpartition(".")[0] in sources:
            name = name.rpartition(".")[0]
        return name

    return {
        each: {module(name) for name in imported(source)} - {each}
        for each, source in sources.items()
    }


def is_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def forbidden(imports: Imports, inside: str, *banned: str) -> list[str]:
    """List the imports of any of `banned` by modules of the package `inside`."""
    return [
        f"{module} imports {name}"
        for module, names in sorted(imports.items())
        if is_in(module, inside)
        for name in sorted(names)
        if is_in(name, *banned)
    ]


def cycles(imports: Imports) -> list[set[str]]:
    """Return the sets of modules that import each other: strongly connected components."""
    reached: dict[str, set[str]] = {}
    for start in imports:
        reached[start], todo = set(), [start]
        while todo:
            new = (imports[todo.pop()] & imports.keys()) - reached[start]
            reached[start] |= new
            todo += new
    found: list[set[str]] = []
    for module, others in reached.items():
        if module in others and not any(module in cycle for cycle in found):
            found.append({other for other in others if module in reached[other]})
    return found


def sources() -> dict[str, str]:
    return {
        module_name(path, above): path.read_text(encoding="utf-8")
        for package, above in (("onnxcp", ROOT), ("onnxcp_passes", ROOT / "passes"))
        for path in sorted((above / package).rglob("*.py"))
    }


IMPORTS = imports_of(sources())

# What each part of the engine may import of the engine, itself apart.
MAY_IMPORT = {
    "onnxcp.errors": (),
    "onnxcp.files": ("onnxcp.errors",),
    "onnxcp.linalg": (),
    "onnxcp.graph": ("onnxcp.errors", "onnxcp.files"),
    "onnxcp.tuning": (
        "onnxcp.calibration",
        "onnxcp.errors",
        "onnxcp.files",
        "onnxcp.graph",
        "onnxcp.profiling",
        "onnxcp.progress",
        "onnxcp.training",
    ),
}
PASSES_MAY_IMPORT = (
    "onnxcp.errors",
    "onnxcp.factorize",
    "onnxcp.graph",
    "onnxcp.linalg",
    "onnxcp.passes",
    "onnxcp.precision",
    "onnxcp.product",
)


def all_but(*allowed: str) -> list[str]:
    """Return the modules of the engine outside `allowed`; its root would stand for all of them."""
    return [
        name
        for name in IMPORTS
        if is_in(name, "onnxcp") and not is_in(name, *allowed) and name != "onnxcp"
    ]


def test_the_sources_are_found() -> None:
    assert {"onnxcp.errors", "onnxcp.graph.splice", "onnxcp.linalg.svd", "onnxcp_passes.cp"} <= set(
        IMPORTS
    )
    assert "onnxcp.graph.site" in IMPORTS["onnxcp.graph.splice"]


def test_linalg_knows_no_graphs() -> None:
    banned = ("onnx", "onnxruntime", "onnx_graphsurgeon")
    assert forbidden(IMPORTS, "onnxcp.linalg", *banned) == []


def test_graph_runs_nothing_and_decomposes_nothing() -> None:
    assert forbidden(IMPORTS, "onnxcp.graph", "onnxruntime", "scipy", "tensorly") == []


def test_the_engine_knows_no_particular_pass() -> None:
    assert forbidden(IMPORTS, "onnxcp", "onnxcp_passes") == []


def test_nothing_but_the_command_line_imports_the_command_line() -> None:
    entrances = ("onnxcp.cli", "onnxcp.__main__")
    outside = {name: names for name, names in IMPORTS.items() if not is_in(name, *entrances)}
    assert forbidden(outside, "onnxcp", "onnxcp.cli", "click") == []
    assert forbidden(outside, "onnxcp_passes", "onnxcp.cli", "click") == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_lower_rooms_know_nothing_of_those_above(package: str) -> None:
    assert forbidden(IMPORTS, package, *all_but(package, *MAY_IMPORT[package])) == []
    assert not any("onnxcp" in names for name, names in IMPORTS.items() if is_in(name, package))


def test_passes_use_what_third_parties_may_use() -> None:
    assert forbidden(IMPORTS, "onnxcp_passes", *all_but(*PASSES_MAY_IMPORT)) == []


def test_pytorch_is_imported_where_networks_are_trained_only() -> None:
    outside = {name: names for name, names in IMPORTS.items() if not is_in(name, "onnxcp.tuning")}
    for package in ("onnxcp", "onnxcp_passes"):
        assert forbidden(outside, package, "torch", "safetensors") == []


def test_only_the_command_line_and_the_main_job_train_networks() -> None:
    outside = {
        name: names
        for name, names in IMPORTS.items()
        if not is_in(name, "onnxcp.tuning", "onnxcp.cli", "onnxcp.optimizer")
    }
    assert forbidden(outside, "onnxcp", "onnxcp.tuning") == []
    assert forbidden(outside, "onnxcp_passes", "onnxcp.tuning") == []


def test_no_two_modules_import_each_other() -> None:
    assert cycles(IMPORTS) == []


@pytest.mark.parametrize("module", ["onnxcp.graph", "onnxcp_passes"])
def test_packages_are_imported_from_this_tree(module: str) -> None:
    """What is tested is what was read."""
    found = importlib.import_module(module).__file__
    assert found is not None
    assert ROOT in Path(found).parents


MADE_UP = {
    "house": "",
    "house.top": "from house import middle\nimport click",
    "house.middle": "from house.low import stone\nfrom house.low.sand import grain as g",
    "house.low": "",
    "house.low.sand": "def late():\n    import house.top.roof",
}


class TestTheChecker:
    def test_names_taken_from_a_module_count_as_the_module(self) -> None:
        assert imports_of(MADE_UP) == {
            "house": set(),
            "house.top": {"house.middle", "click"},
            "house.middle": {"house.low", "house.low.sand"},
            "house.low": set(),
            "house.low.sand": {"house.top"},
        }

    def test_finds_what_is_forbidden_in_a_function_too(self) -> None:
        found = forbidden(imports_of(MADE_UP), "house.low", "house.top")
        assert found == ["house.low.sand imports house.top"]

    def test_does_not_mistake_a_prefix_for_a_package(self) -> None:
        assert forbidden({"onnx_tool": {"onnxruntime"}}, "onnx", "onnxruntime") == []
        assert forbidden({"a": {"onnxruntime.capi"}}, "a", "onnx") == []

    def test_finds_cycles(self) -> None:
        assert cycles(imports_of(MADE_UP)) == [{"house.top", "house.middle", "house.low.sand"}]
        assert cycles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
        assert cycles({"a": {"a"}}) == [{"a"}]

    def test_refuses_relative_imports(self) -> None:
        with pytest.raises(AssertionError, match="absolute"):
            list(imported("from . import x"))
