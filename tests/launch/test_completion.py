"""The completion script in a real bash, and its syntax in the other shells where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from downpour.launch import cli, completion
from downpour.launch.completion import Command
from downpour.launch.job import recipe

# The words of a line as bash splits them, "=" among the characters that break words; then what is offered.
_LINES = {
    "downpour st": {"status", "study"},
    "downpour train --st": {"--steps="},
    "downpour train --noe": {"--noevaluator"},
    "downpour train --recipe = qu": {"quickstart"},
    "downpour train --recipe=qu": {"--recipe=quickstart"},
    "downpour train mi": {"mine.py"},
    "downpour train --recipe = ": {*recipe.names(), "mine.py", "runs/"},
    "downpour status al": {"runs/alpha"},
    "downpour export --checkpoint = runs/b": {"runs/beta"},
    "downpour train --resume --run_dir = runs/": {"runs/alpha", "runs/beta"},
    "downpour prepare o": {"openmoji", "open-images"},
    "downpour completion z": {"zsh"},
    "downpour train --batch_size = ": set(),
    "downpour nonsense ": {"--help", "--helpfull"},
}
_ASK = """
source ./script
while IFS= read -r line; do
    read -ra COMP_WORDS <<< "$line"
    [[ $line == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )) COMPREPLY=()
    _downpour
    echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture(scope="module")
def known() -> dict[str, Command]:
    return completion.commands()


def test_every_command_has_its_real_flags(known: dict[str, Command]) -> None:
    assert known.keys() == cli.COMMANDS.keys()
    forms = {name: {option.form for option in command.options} for name, command in known.items()}
    assert {"--recipe=", "--set=", "--epochs=", "--steps=", "--evaluator", "--noevaluator"} <= forms["train"]
    assert {"--index=", "--arena=", "--tls=", "--nogroup_commit"} <= forms["ps"] and "--recipe=" not in forms["ps"]
    assert {"--json", "--token_file="} <= forms["status"]
    assert not any("verbosity" in form for found in forms.values() for form in found)


@pytest.mark.process
def test_bash_completes_commands_flags_recipes_and_runs(known: dict[str, Command], tmp_path: Path) -> None:
    for folder in ("runs/alpha", "runs/beta"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mine.py").touch()
    (tmp_path / "other.txt").touch()
    (tmp_path / "script").write_text(completion.bash(known))
    command = ["bash", "--norc", "-c", _ASK]
    lines = "".join(f"{line}\n" for line in _LINES)
    done = subprocess.run(command, cwd=tmp_path, input=lines, capture_output=True, text=True, timeout=60, check=True)
    assert not done.stderr
    offered = dict(zip(_LINES, (set(line.split()) for line in done.stdout.split("\n")), strict=False))
    assert offered == _LINES


@pytest.mark.process
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_their_scripts(known: dict[str, Command], shell: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(completion.SHELLS[shell](known))
    for name in cli.COMMANDS:
        assert name in script.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", script], check=True, timeout=60)
