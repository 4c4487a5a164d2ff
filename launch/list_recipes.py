"""Lists the recipes that come with Downpour, each with the first line of its docstring.

    downpour recipes
    downpour train quickstart --set=help

A recipe of your own is a Python file, given by its path in place of the name (docs/recipes.md).
"""

from __future__ import annotations

import importlib

from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax

SYNTAX = Syntax()


def main() -> None:
    """Prints them."""
    define()
    entry.run(_main, role="recipes", syntax=SYNTAX)


def define() -> None:
    """Defines no flags."""


def _main() -> None:
    from downpour.launch import recipes
    from downpour.launch.job import recipe

    width = max(map(len, recipe.names()))
    for name in recipe.names():
        first = (importlib.import_module(f"{recipes.__name__}.{name}").__doc__ or "").partition("\n")[0]
        print(f"{name:<{width}}  {first}")


if __name__ == "__main__":
    main()
