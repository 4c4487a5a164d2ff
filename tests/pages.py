"""A hook of MkDocs: adds to the pages of docs/ those of the checkout's top and one for every package of the API.

README.md becomes the home page. A path of the code in a text, such as `ps/policy/` or `ps/policy/rules.py`, becomes a
link to its reference. A public name without a docstring is a warning, which fails a strict build. The hook reads
sources and imports none of them, so a build needs neither TensorFlow nor the packages of a shard.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tests.structure import structure

ROOT = Path(__file__).parents[1]
TOP = {"README.md": "index.md"} | {name: name for name in ("BUILD_NOTES.md", "CONTRIBUTING.md", "CHANGELOG.md")}
FOLDERS = ("proto", "ps", "worker", "model", "launch")
_MODULE = re.compile(rf"(?<!\[)`((?:{'|'.join(FOLDERS)})/[\w/]+(?:\.py|/))`")
_FENCE = re.compile(r"(^ *```.*?^ *```)", re.DOTALL | re.MULTILINE)
_log = get_plugin_logger("pages")


def packages() -> dict[str, list[str]]:
    """The modules of every package by the package's name, the package itself first; without generated code."""
    found: dict[str, list[str]] = {}
    for folder in FOLDERS:
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            modules = [file for file in sorted(init.parent.glob("*.py")) if not re.search(r"_pb2|^_", file.name)]
            found[_name(init)] = [_name(init), *map(_name, modules)]
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the packages into the navigation, folder by folder."""
    pages = [_page(package) for package in packages()]
    config.nav[-1]["API"] = [{folder: [page for page in pages if page.split(".")[1] == folder]} for folder in FOLDERS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and warns of every public name without a docstring."""
    for name, page in TOP.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    for package, modules in packages().items():
        text = f"# {package}\n\n" + "".join(f"::: {module}\n\n" for module in modules)
        files.append(File.generated(config, _page(package), content=text))
    for name in structure().undocumented:
        _log.warning(f"{name} has no docstring")
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Points links at the places that files have on the site, and names of modules at their reference."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    parts = _FENCE.split(markdown)
    parts[::2] = [_MODULE.sub(_reference, _relink(text)) for text in parts[::2]]
    return "".join(parts)


def _relink(text: str) -> str:
    """Pages of the top and of docs/ lie side by side on the site."""
    return re.sub(r"\]\((?:docs/|\.\./)(?=[\w./]+(?:#|\)))", "](", text).replace("](README.md", "](index.md")


def _reference(found: re.Match[str]) -> str:
    name = _name(ROOT / found[1])
    is_package = found[1].endswith(("/", "/__init__.py"))
    return f"[`{found[1]}`]({_page(name if is_package else name.rpartition('.')[0])}#{name})"


def _page(package: str) -> str:
    return f"api/{package}.md"


def _name(file: Path) -> str:
    return ".".join(("downpour", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
