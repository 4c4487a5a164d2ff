"""Prints the script that completes commands, their flags, recipes and folders of runs in a shell.

    source <(downpour completion bash)            # in ~/.bashrc
    downpour completion zsh > ~/.zfunc/_downpour  # and fpath+=~/.zfunc
    downpour completion fish > ~/.config/fish/completions/downpour.fish

It is made of the flags that the commands define, so print it anew after an update. Names of recipes and of folders
below runs/ are looked up when a key is pressed; of a command whose packages are not installed, only the name is known.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from absl import flags

from downpour.launch import cli
from downpour.launch.roles import command_line, entry
from downpour.launch.roles.command_line import Syntax

SYNTAX = Syntax("shell", positional="shell")
# What a value is, by the name of its flag; values of other flags are not completed.
_RECIPE, _RUN, _PATH = "recipe", "run", "path"
_VALUES = {
    **dict.fromkeys(("first", "second", "remove"), _PATH),
    "recipe": _RECIPE,
    **dict.fromkeys(("run", "run_dir", "checkpoint", "init_from"), _RUN),
    **dict.fromkeys(("out", "html", "path", "tree", "hosts", "tls", "token_file", "checkpoint_dir", "arena"), _PATH),
    **dict.fromkeys(("directory", "arena_dir", "plot", "data", "features"), _PATH),
}


@dataclass(frozen=True)
class Option:
    """A flag as it is written.

    Attributes:
        form: `--name=` if it takes a value, else `--name`.
        text: What it does.
        value: What its value is: `recipe`, `run`, `path`, or "" for anything.
        choices: The values that it may have; none for any.
    """

    form: str
    text: str
    value: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """What can follow a command.

    Attributes:
        options: Its flags.
        argument: The flag whose value may stand without its name; None if there is none.
    """

    options: tuple[Option, ...] = ()
    argument: Option | None = None


def main() -> None:
    """Prints the script of a shell."""
    define()
    entry.run(_main, role="completion", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_enum("shell", None, SHELLS, "Shell of the script.")


def _main() -> None:
    shell = flags.FLAGS["shell"].value
    if not shell:
        raise ValueError(f"no shell; give one of {', '.join(SHELLS)}: downpour completion bash")
    print(SHELLS[shell](commands()))


def commands() -> dict[str, Command]:
    """What can follow every command, by its name; nothing known for one whose packages are not installed."""
    if "shell" in flags.FLAGS:  # of this process; the flags of every command are now defined and removed again
        delattr(flags.FLAGS, "shell")
    known = dict[str, Command]()
    for name, (path, _) in cli.COMMANDS.items():
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError:
            known[name] = Command()
            continue
        found = command_line.flags_of(module.define)
        options = {flag: tuple(_options(definition)) for flag, definition in found.items()}
        positional = module.SYNTAX.positional.split()
        argument = options[positional[0]][0] if positional else None
        known[name] = Command(tuple(option for both in options.values() for option in both), argument)
    return known


def _options(flag: flags.Flag[object]) -> Iterator[Option]:
    text = command_line.text_of(flag)
    if flag.boolean:
        yield Option(f"--{flag.name}", text)
        if flag.default:
            yield Option(f"--no{flag.name}", text)
    else:
        choices = tuple(flag.parser.enum_values) if isinstance(flag, flags.EnumFlag) else ()
        yield Option(f"--{flag.name}=", text, _VALUES.get(flag.name, ""), choices)


def _recipes() -> list[str]:
    from downpour.launch.job import recipe

    return recipe.names()


def bash(known: Mapping[str, Command]) -> str:
    """The script for bash, 4.4 or newer."""
    cases = []
    for name, command in known.items():
        words = [option.form for option in command.options]
        kind = command.argument.value if command.argument else ""
        words += command.argument.choices if command.argument else ()
        cases.append(f"        {name}) words={_quoted(*words)}; argument={kind} ;;")
    kinds: dict[str, list[str]] = {}
    for name, kind in _VALUES.items():
        kinds.setdefault(kind, []).append(f"--{name}")
    values = [f"        {'|'.join(names)}) kind={kind} ;;" for kind, names in kinds.items()]
    return _BASH % {
        "commands": _quoted(*known, "--help", "--version"),
        "recipes": _quoted(*_recipes()),
        "cases": "\n".join(cases),
        "values": "\n".join(values),
    }


def zsh(known: Mapping[str, Command]) -> str:
    """The script for zsh."""
    described = "\n".join(f"        '{name}:{_zsh_escaped(cli.COMMANDS[name][1])}'" for name in known)
    cases = []
    for name, command in known.items():
        specs = [_zsh_spec(option) for option in command.options]
        if command.argument:
            specs.append(f"'1:{_zsh_action(command.argument)}'")
        cases.append(f"        {name}) _arguments {' '.join(specs)} ;;" if specs else f"        {name}) ;;")
    return _ZSH % {"commands": described, "cases": "\n".join(cases), "recipes": " ".join(_recipes())}


def fish(known: Mapping[str, Command]) -> str:
    """The script for fish."""
    lines = [_FISH % {"recipes": " ".join(_recipes())}]
    for name in known:
        text = _fish_escaped(cli.COMMANDS[name][1])
        lines.append(f"complete -c downpour -f -n __fish_use_subcommand -a {name} -d '{text}'")
    for name, command in known.items():
        seen = f"complete -c downpour -n '__fish_seen_subcommand_from {name}'"
        if command.argument:
            lines.append(seen + _fish_values(command.argument))
        for option in command.options:
            takes = f" -r{_fish_values(option)}" if option.form.endswith("=") else " -f"
            lines.append(f"{seen} -l {option.form.strip('-=')}{takes} -d '{_fish_escaped(option.text)}'")
    return "\n".join(lines)


def _quoted(*words: str) -> str:
    return f"'{' '.join(words)}'"


def _fish_escaped(text: str) -> str:
    """A text within single quotes of fish."""
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _fish_values(option: Option) -> str:
    if option.value == _PATH:
        return " -F"
    words = f"(__downpour_{option.value})" if option.value else " ".join(option.choices)
    return f" -f -a '{words}'" if words else " -f"


def _zsh_escaped(text: str) -> str:
    """A text within single quotes of zsh, in which brackets and colons have a meaning."""
    for character in "[]:":
        text = text.replace(character, f"\\{character}")
    return text.replace("'", "'\\''")


def _zsh_action(option: Option) -> str:
    """What completes a value: `recipe:_downpour_recipe`."""
    if option.value:
        return f"{option.value}:{'_files' if option.value == _PATH else f'_downpour_{option.value}'}"
    return f"value:({' '.join(option.choices)})" if option.choices else "value: "


def _zsh_spec(option: Option) -> str:
    repeated = "*" if option.form in ("--set=", "--vary=") else ""
    takes = f":{_zsh_action(option)}" if option.form.endswith("=") else ""
    return f"'{repeated}{option.form}[{_zsh_escaped(option.text)}]{takes}'"


_BASH = """\
# Completion of downpour for bash, written by `downpour completion bash`.
_downpour() {
    local command=${COMP_WORDS[1]} current=${COMP_WORDS[COMP_CWORD]} flag= prefix= words= argument= kind=
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=($(compgen -W %(commands)s -- "$current"))
        return
    fi
    case $command in
%(cases)s
    esac
    # "--flag=value" is one word, or three where "=" breaks words.
    if [[ $current == --*=* ]]; then
        flag=${current%%%%=*} prefix=${current%%%%=*}= current=${current#*=}
    elif [[ $current == = ]]; then
        flag=${COMP_WORDS[COMP_CWORD-1]} current=
    elif [[ ${COMP_WORDS[COMP_CWORD-1]} == = ]]; then
        flag=${COMP_WORDS[COMP_CWORD-2]}
    fi
    case $flag in
%(values)s
        '') [[ $current == -* ]] || kind=$argument ;;
    esac
    case $kind in
        recipe) COMPREPLY=($(compgen -W %(recipes)s -- "$current") $(compgen -f -X '!*.py' -- "$current")) ;;
        run) COMPREPLY=($(compgen -d -- "$current") $(cd runs 2>/dev/null && compgen -d -P runs/ -- "$current")) ;;
        path) COMPREPLY=($(compgen -f -- "$current")) ;;
    esac
    [[ $kind == recipe || $kind == path ]] && COMPREPLY+=($(compgen -d -S / -- "$current"))
    [[ -z $flag ]] && COMPREPLY+=($(compgen -W "$words --help --helpfull" -- "$current"))
    [[ -n $prefix ]] && COMPREPLY=("${COMPREPLY[@]/#/$prefix}")
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -F _downpour downpour"""

_ZSH = """\
#compdef downpour
# Completion of downpour for zsh, written by `downpour completion zsh`.
_downpour_recipe() {
    _alternative 'recipes:recipe:(%(recipes)s)' 'files:file:_files -g "*.py"'
}
_downpour_run() {
    _alternative 'runs:run:_path_files -W runs -/ -P runs/' 'folders:folder:_files -/'
}
_downpour() {
    local -a commands
    commands=(
%(commands)s
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
%(cases)s
    esac
}
if [[ $funcstack[1] == _downpour ]]; then
    _downpour "$@"
else
    compdef _downpour downpour
fi"""

_FISH = """\
# Completion of downpour for fish, written by `downpour completion fish`.
function __downpour_recipe
    string split ' ' '%(recipes)s'
    __fish_complete_suffix .py
end
function __downpour_run
    for folder in runs/*/
        string trim -r -c / $folder
    end
    __fish_complete_directories
end"""

SHELLS: dict[str, Callable[[Mapping[str, Command]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


if __name__ == "__main__":
    main()
