"""The flags `--recipe` and `--set`, with which commands and roles choose a job."""

from __future__ import annotations

from absl import flags

from downpour.launch.job import overrides, recipe


def define() -> None:
    """Defines both; flags that are defined already are kept."""
    if "recipe" not in flags.FLAGS:
        text = "Name of a recipe, or path of its .py file."
        flags.DEFINE_string("recipe", None, text, flag_values=flags.FLAGS)
    if "set" not in flags.FLAGS:
        text = "Override of the recipe, key=value; may be given many times."
        flags.DEFINE_multi_string("set", [], text, flag_values=flags.FLAGS)


def read() -> tuple[str, tuple[str, ...]]:
    """Returns the recipe and its overrides; `--set=help` prints the keys and ends the process.

    Raises:
        ValueError: There is no `--recipe`, or `--set=help` is given and the recipe cannot be loaded.
    """
    name, given = flags.FLAGS["recipe"].value, flags.FLAGS["set"].value or []
    if not name:
        known = ", ".join(recipe.names())
        raise ValueError(f"no recipe; give --recipe=NAME, one of {known}, or the path of a .py file")
    if "help" in given:
        print(overrides.listing(recipe.load(name), recipe.MORE_KEYS))
        raise SystemExit(0)
    return str(name), tuple(given)
