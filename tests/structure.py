"""The structure of the code in numbers: writes the table of docs/architecture.md, and checks its limits.

    python -m tests.structure            writes the table
    python -m tests.structure --check    fails if the table is not current or a limit is exceeded; part of `make lint`

Generated code does not count. An import under TYPE_CHECKING counts as any other.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("proto", "ps", "worker", "model", "launch")
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- structure: begin -->", "<!-- structure: end -->"
MOST_FILE_LINES, MOST_CLASS_LINES = 400, 200


@dataclass(frozen=True)
class Structure:
    """What was counted.

    Attributes:
        function_lines: Of every function and method.
        long_files: With more than 400 lines, and their number.
        long_classes: With more than 200 lines, and their number.
        circles: Modules that import each other, directly or not.
        num_public: Public modules, classes, functions and methods.
        undocumented: Of these, without a docstring.
    """

    function_lines: list[int]
    long_files: dict[str, int]
    long_classes: dict[str, int]
    circles: list[list[str]]
    num_public: int
    undocumented: list[str]

    def table(self) -> str:
        """In Markdown."""
        lines = sorted(self.function_lines)
        documented = 1 - len(self.undocumented) / self.num_public
        rows = {
            "functions and methods": f"{len(lines):,}",
            "their lines: median, 95th percentile, longest": (
                f"{statistics.median_low(lines)}, {lines[len(lines) * 95 // 100]}, {lines[-1]}"
            ),
            f"files over {MOST_FILE_LINES} lines": _listed(self.long_files),
            f"classes over {MOST_CLASS_LINES} lines": _listed(self.long_classes),
            "import circles": "; ".join(" - ".join(circle) for circle in self.circles) or "none",
            "public names with a docstring": f"{documented:.1%} of {self.num_public:,}",
        }
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])

    def faults(self) -> list[str]:
        """What exceeds a limit, in words."""
        return [
            *(f"{name} has {number} lines, at most {MOST_FILE_LINES}" for name, number in self.long_files.items()),
            *(f"{name} has {number} lines, at most {MOST_CLASS_LINES}" for name, number in self.long_classes.items()),
            *(f"these import each other: {', '.join(circle)}" for circle in self.circles),
            *(f"{name} has no docstring" for name in self.undocumented),
        ]


def structure(root: Path = ROOT) -> Structure:
    """Counts the code below a checkout."""
    modules = {_name(path.relative_to(root)): path for path in _files(root)}
    trees = {name: ast.parse(path.read_text()) for name, path in modules.items()}
    functions, classes, undocumented, num_public = list[int](), dict[str, int](), list[str](), 0
    for name, tree in trees.items():
        for node, where, is_public in _definitions(tree, name):
            num_lines = node.end_lineno - node.lineno + 1 if not isinstance(node, ast.Module) else 0
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append(num_lines)
            elif isinstance(node, ast.ClassDef) and num_lines > MOST_CLASS_LINES:
                classes[where] = num_lines
            if is_public:
                num_public += 1
                if ast.get_docstring(node) is None:
                    undocumented.append(where)
    files = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in modules.values()}
    long_files = {name: number for name, number in files.items() if number > MOST_FILE_LINES}
    return Structure(functions, long_files, classes, circles(imports(trees)), num_public, undocumented)


def imports(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Which of some modules each of them imports, anywhere in it."""
    found: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in trees}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= inner & trees.keys() or {node.module} & trees.keys()
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules, each of which reaches all others of its set."""
    reached = {name: _reach(graph, name) for name in graph}
    found = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]}
    return [list(circle) for circle in sorted(found)]


def _reach(graph: Mapping[str, set[str]], begin: str) -> set[str]:
    """All modules that can be reached by one import or more."""
    reached, left = set[str](), list(graph[begin])
    while left:
        if (name := left.pop()) not in reached:
            reached.add(name)
            left += graph[name]
    return reached


def _definitions(tree: ast.Module, module: str) -> Iterator[tuple[ast.AST, str, bool]]:
    """Every module, class and function with its name, and whether it is public; what is inside functions is not."""
    yield tree, module, not _is_private(module)
    todo: list[tuple[ast.AST, str, bool]] = [(tree, module, not _is_private(module))]
    while todo:
        parent, where, is_public = todo.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                is_function = not isinstance(parent, ast.Module | ast.ClassDef)
                is_setter = any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in node.decorator_list)
                is_named = is_public and not (node.name.startswith("_") or is_function or is_setter)
                one = node, f"{where}.{node.name}", is_named
                yield one
                todo.append(one)
            else:
                todo.append((node, where, is_public and isinstance(parent, ast.Module | ast.ClassDef)))


def _is_private(module: str) -> bool:
    return any(part.startswith("_") for part in module.split("."))


def _name(path: Path) -> str:
    return ".".join(("downpour", *path.with_suffix("").parts)).removesuffix(".__init__")


def _files(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (path for path in sorted((root / folder).rglob("*.py")) if "_pb2" not in path.name)


def _listed(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({number})" for name, number in found.items()) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    found = structure()
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    current = f"{before}{BEGIN}\n{found.table()}\n{END}{after}"
    if not is_check:
        PAGE.write_text(current)
        print(found.table())
        return
    stale = ["docs/architecture.md is not current; run python -m tests.structure"] * (current != text)
    faults = found.faults() + stale
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
