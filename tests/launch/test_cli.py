from __future__ import annotations

import pytest

RUN = "import sys; from downpour.launch.cli import main; main()"


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no subcommand; the subcommands are train, local, recipes, ps, worker, chief, evaluator, layout, prepare"),
        (("trian",), "unknown subcommand 'trian', did you mean 'train'?; the subcommands are train, local,"),
        (("local",), "no recipe; give --recipe=NAME, one of jft300m, paper_shape, quickstart"),
        (("local", "--recipe=nope"), "no recipe 'nope'"),
        (("local", "--recipe=quickstart", "--set=cluster.nump=3"), "did you mean cluster.num_ps=17"),
        (("local", "--recipe=quickstart", "--steps=0"), "num_steps is 0"),
        (("local", "--recipe=quickstart", "--set=data.folder=/missing"), "/missing is missing"),
        (("layout", "--recipe=nope"), "no recipe 'nope'"),
        (("prepare", "imagenet"), "'imagenet' is not known; accepted are openmoji"),
        (("prepare", "--out=x"), "'' is not known"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run_python, arguments, message, tmp_path):
    result = run_python(f"import os; os.chdir({str(tmp_path)!r})\n{RUN}", *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("--help",), ["prepare openmoji", "layout", "evaluator"]),
        (("local", "--help"), ["RESULT", "--recipe", "--set", "--steps"]),
    ],
)
def test_help(run_python, arguments, texts):
    result = run_python(RUN, *arguments)
    assert result.returncode == 0
    assert all(text in result.stdout for text in texts), result.stdout


@pytest.mark.process
def test_shard_does_not_import_tensorflow_nor_the_recipes(run_python):
    code = """
import sys
from downpour.launch import cli
from downpour.launch.roles import entry, topology
assert not {"tensorflow", "keras", "psutil", "rich", "downpour.launch.job.job"} & set(sys.modules)
"""
    assert run_python(code).returncode == 0
