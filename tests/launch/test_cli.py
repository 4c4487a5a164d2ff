from __future__ import annotations

import pytest

RUN = "import sys; from downpour.launch.cli import main; main()"


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no command; the commands are train, local, status, top, report, compare"),
        (("trian",), "unknown command 'trian'; did you mean 'train'? the commands are train, local,"),
        (("local",), "no recipe; give --recipe=NAME, one of imagenet, imagenet_finetune, imagenet_frozen, jft300m,"),
        (("local", "--recipe=nope"), "no recipe 'nope'"),
        (("local", "--recipe=quickstart", "--set=cluster.nump=3"), "did you mean cluster.num_ps=17"),
        (("local", "--recipe=quickstart", "--steps=0"), "num_steps is 0"),
        (("local", "--recipe=quickstart", "--set=data.folder=/missing"), "/missing is missing"),
        (("layout", "--recipe=nope"), "no recipe 'nope'"),
        (("local", "quickstrat"), "no recipe 'quickstrat'; did you mean quickstart? the recipes are imagenet,"),
        (("local", "quickstart", "other"), "unexpected argument 'other'"),
        (("local", "--num_steps=3"), "unknown flag --num_steps; did you mean --steps? --help lists"),
        (("local", "quickstart", "--set=epochs=3", "--steps=3"), "num_steps and epochs are given; give one of them"),
        (
            ("prepare", "imagnet"),
            "--dataset=imagnet: value should be one of <folder|csv|open-images|imagenet|openmoji>",
        ),
        (("prepare", "--out=x"), "no data set; give one of folder, csv, open-images, imagenet, openmoji"),
        (("prepare", "folder"), "nothing to read; give a path: downpour prepare folder PATH --out=OUT"),
        (
            ("prepare", "folder", ".", "x"),
            "unexpected argument 'x'; every argument is a flag, --name=value, but for one ",
        ),
        (("prepare", "folder", ".", "--heldout=2"), "heldout is 2.0; give a number from 0 to 1"),
        (("completion", "tcsh"), "--shell=tcsh: value should be one of <bash|zsh|fish>"),
        (("status",), "no run; give the folder of a run, or host:port"),
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
        (("--help",), ["downpour train mine.py", "prepare", "layout", "evaluator"]),
        (("local", "--help"), ["[--recipe=]...", "--set", "--steps=N", "--helpfull"]),
        (("local", "--helpfull"), ["RESULT", "--recipe", "--steps", "--arena_parent", "--verbosity", "--undefok"]),
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
