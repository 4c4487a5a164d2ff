"""Parses a command line by absl's flags, and prints what `--help` and `--helpfull` show.

`--help` fits a screen: the docstring of the command's module to the end of its first example, an indented block, and
the flags that people need. `--helpfull` shows the whole docstring and every flag, absl's own among them.

Imports only what a shard has installed.
"""

from __future__ import annotations

import difflib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from absl import flags

_NARROWEST, _WIDEST = 80, 100  # columns of --help
_MOST_INDENTED = 26  # columns of flags before their descriptions; a longer one has a line of its own
_HELP, _HELP_FULL = {"--help", "-h", "-help"}, "--helpfull"
_OWN = ("die_with_parent",)  # of launchers, not of people
_ABSL_SAYS = "; repeat this option to specify a list of values"
_SHORT_TYPES = {"int": "N", "float": "X"}


@dataclass(frozen=True)
class Syntax:
    """What a command takes besides its flags, and which of them `--help` shows.

    Attributes:
        shown: Names of the flags that `--help` shows, in this order, blanks between; "" for all of Downpour's.
        positional: Flags whose values may be given as arguments without a name, in this order, blanks between; "" for
            none.
        repeats: Whether the last of these takes all further arguments, too.
    """

    shown: str = ""
    positional: str = ""
    repeats: bool = False


PLAIN = Syntax()


def parse(doc: str, syntax: Syntax) -> None:
    """Parses `sys.argv` into the flags; for `--help` and `--helpfull`, prints that and ends the process.

    Args:
        doc: Docstring of the command's module.
        syntax: The command's syntax.

    Raises:
        ValueError: An argument is not UTF-8, no flag, or an unknown flag, for which the message names the nearest.
        flags.Error: A flag's value is refused.
    """
    if _HELP_FULL in sys.argv[1:]:
        print("\n".join([doc.strip(), flags.FLAGS.get_help()]))
        sys.exit(0)
    if _HELP & set(sys.argv[1:]):
        print(screen(doc, syntax, {name: flags.FLAGS[name] for name in _ours()}))
        sys.exit(0)
    for argument in sys.argv[1:]:
        if any("\udc80" <= character <= "\udcff" for character in argument):  # as Python keeps other bytes
            raise ValueError(f"argument {argument!a} is not UTF-8; rename what it names, or give something else")
    flags.FLAGS.set_gnu_getopt(True)  # flags may follow an argument without a name
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise ValueError(_unknown(error.flagname)) from None
    for name in syntax.positional.split():
        if rest and flags.FLAGS[name].value is None:
            flags.FLAGS[name].parse(rest.pop(0))
    if syntax.repeats and rest:
        flags.FLAGS[syntax.positional.split()[-1]].parse(rest)
        rest = []
    if rest:
        may = f", but for one {' and one '.join(syntax.positional.split())}" if syntax.positional else ""
        raise ValueError(f"unexpected argument {rest[0]!r}; every argument is a flag, --name=value{may} (see --help)")


def flags_of(define: Callable[[], None]) -> Mapping[str, flags.Flag[object]]:
    """The flags that a function defines, by name; they are removed again."""
    before = set(flags.FLAGS)
    define()
    found = {name: flags.FLAGS[name] for name in flags.FLAGS if name not in before}
    for name in found:
        delattr(flags.FLAGS, name)
    return found


def screen(doc: str, syntax: Syntax, defined: Mapping[str, flags.Flag[object]], width: int = 0) -> str:
    """What `--help` shows.

    Args:
        doc: Docstring of the command's module.
        syntax: The command's syntax.
        defined: Its flags, by name.
        width: Columns; 0 for those of the terminal, at least 80 and at most 100.
    """
    width = width or min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    shown = [defined[name] for name in syntax.shown.split() or sorted(defined)]
    rows = [(form_of(flag, syntax), text_of(flag)) for flag in shown]
    column = 4 + max((len(form) for form, _ in rows if len(form) + 4 <= _MOST_INDENTED), default=0)
    lines = [*_to_first_example(doc, width), ""]
    for form, text in rows:
        first = f"  {form}".ljust(column)
        if len(form) + 4 > column:
            lines.append(first)
            first = " " * column
        lines += textwrap.wrap(text, width, initial_indent=first, subsequent_indent=" " * column)
    return "\n".join([*lines, "", "--helpfull explains more and lists all flags."])


def _to_first_example(doc: str, width: int) -> Iterator[str]:
    """The lines of a docstring to the end of its first indented paragraphs, the others filled to a width."""
    example = False
    for number, paragraph in enumerate(doc.strip().split("\n\n")):
        if example and not paragraph.startswith(" "):
            return
        if number:
            yield ""
        example = paragraph.startswith(" ")
        yield from paragraph.splitlines() if example else textwrap.wrap(paragraph, width)


def form_of(flag: flags.Flag[object], syntax: Syntax = PLAIN) -> str:
    """How a flag is written: `--[no]evaluator`, `--steps=N`, `[--recipe=]...`."""
    if flag.boolean:
        return f"--[no]{flag.name}" if flag.default else f"--{flag.name}"
    name = f"[--{flag.name}=]" if flag.name in syntax.positional.split() else f"--{flag.name}="
    return name + _SHORT_TYPES.get(flag.flag_type(), "...")


def text_of(flag: flags.Flag[object]) -> str:
    """A flag's description, with its default if that is neither empty nor described."""
    text = " ".join((flag.help or "").split()).removesuffix(_ABSL_SAYS)
    if flag.boolean or flag.default in (None, "", []) or "default" in text:
        return text
    return f"{text} Default: {flag.default}."


def _ours() -> list[str]:
    """Names of the flags that modules of Downpour, or the program, have defined."""
    by_module = flags.FLAGS.flags_by_module_dict()
    modules = [name for name in by_module if name.startswith("downpour.") or name == sys.argv[0]]
    return list({flag.name for name in modules for flag in by_module[name]} - set(_OWN))


def _unknown(name: str) -> str:
    known = [*flags.FLAGS, *(f"no{flag}" for flag in flags.FLAGS if flags.FLAGS[flag].boolean)]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(f'--{one}' for one in near)}? " if near else ""
    fields = "; a field of the job is given by --set=FIELD=VALUE" if "set" in flags.FLAGS else ""
    return f"unknown flag --{name}; {hint}--help lists the flags{fields}"
