"""README.md and docs/: every command in a fenced block is executed, or a test is named that does; what is named exists.

They run in the order of each page, in one fresh folder that holds the Python files of the page, in an environment that
has what `make quickstart` installs. Training is shortened by flags at the end of a command, but for slow tests.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from downpour import DISTRIBUTION, __version__
from downpour.launch import cli
from downpour.launch.job import Job, recipe
from tests.launch.kubernetes import manifests
from tests.newcomer import ROOT, commands_of, files_of, make_environment, setup_arguments

PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}

# What a command runs into that cannot be had here, and the test that executes it as far as it can be.
_WHEEL = "tests/test_install.py::test_a_shard_runs_from_a_wheel_in_a_venv_without_tensorflow"
_PREPARE = "tests/launch/test_prepare.py::test_the_commands_of_the_page_prepare_photographs_and_train_on_them"
_SLURM = "tests/launch/test_slurm.py::test_a_job_trains_on_five_nodes_and_ends"
_IMAGE = "tests/launch/kubernetes/test_images.py::test_the_shard_image_starts_a_shard_and_has_no_tensorflow"
_TRANSFER = "tests/benchmarks/test_transfer.py::"
_KUSTOMIZE = "tests/launch/kubernetes/test_kustomize.py::"
COVERED = {
    r"pip install '\.\[worker,quickstart\]'": "tests/test_install.py::test_what_make_quickstart_installs_is_enough",
    r"pip install 'dist/.*\.whl\[worker\]'": _WHEEL,
    r"python -m build --wheel": _WHEEL,
    r"downpour prepare csv dense\.csv": (
        "tests/model/vision/preparing/test_annotated.py::test_the_command_converts_a_table"
    ),
    r"downpour prepare (folder|csv) ": _PREPARE,
    r"downpour train on_photos\.py": _PREPARE,
    r"downpour train imagenet_finetune ": f"{_TRANSFER}test_every_arm_learns_by_real_runs_which_are_not_repeated",
    r"downpour features ": "tests/launch/test_features.py::test_both_commands",
    r"downpour probe ": "tests/launch/test_features.py::test_both_commands",
    r"downpour simulate ": "tests/launch/test_simulate.py::test_workers_and_variants_stand_side_by_side",
    r"downpour advise ": "tests/launch/test_simulate.py::test_advice_names_what_to_set",
    r"downpour duplicates ": "tests/launch/test_duplicates.py::test_the_command_lists_and_removes",
    r"downpour study ": "tests/launch/test_study.py::test_a_study_that_was_interrupted_or_killed_goes_on",
    r"downpour ssh ": "tests/launch/test_ssh.py::test_a_job_on_four_hosts_trains_with_tls_and_leaves_nothing_behind",
    r"export RECIPE=": _SLURM,
    r"sbatch docs/slurm\.sbatch": _SLURM,
    r"docker build": _IMAGE,
    r"downpour kubernetes --recipe=jft300m": "tests/launch/kubernetes/test_generated.py::test_the_papers_fleets",
    r"kubectl apply -k": f"{_KUSTOMIZE}test_kubectl_builds_the_same",
    r"kubectl logs -f job/quickstart-chief": "tests/kubelet/test_quickstart.py",
    r"kubectl patch job": "tests/launch/kubernetes/test_docs.py::test_workers_are_scaled_by_fields_that_exist",
    r"python train\.py --resume": "tests/launch/test_notebook.py::test_a_notebook_stops_in_the_middle_and_resumes",
    r"deploy/restart\.sh": f"{_KUSTOMIZE}test_restart_ends_the_shards_first_and_keeps_the_rest",
}
# Flags that shorten a command, the first that matches.
_NARROW, _FEW = "--set=model.width=4", "--set=cluster.num_workers=1 --set=cluster.num_ps=2"
_ONE = "--noevaluator --set=cluster.num_workers=1 --set=cluster.num_ps=2"
SHORT = [
    (r"local --recipe=quickstart --overwrite", f"--steps=4 --batch_size=16 {_FEW} {_NARROW}"),
    (r"local --recipe=quickstart --resume", f"--steps=8 --batch_size=16 {_NARROW} {_ONE} --set=cluster.num_ps=3"),
    (r"(local --recipe=|train )quickstart", f"--steps=4 --batch_size=16 {_NARROW} {_ONE}"),
    (r"(local --recipe=|train )mine", f"--steps=4 --batch_size=16 {_ONE}"),
    (r"export .*--recipe=quickstart", _NARROW),
    (r"plan ", f"--measure_s=0.1 {_NARROW}"),
]  # fmt: skip
PLAIN_KERAS = """
import importlib.util, sys
import keras, numpy
assert importlib.util.find_spec("downpour") is None
print(keras.saving.load_model(sys.argv[1]).predict(numpy.zeros((2, 32, 32, 3), "float32"), verbose=0).shape)
"""


@dataclass
class Newcomer:
    """Somebody who types what a page shows, in a fresh folder."""

    programs: Path
    folder: Path
    shortens: bool

    def type(self, command: str) -> str:
        """Runs a line in a shell; what it printed."""
        command = command.replace("/shared", str(self.folder / "shared"))
        short = next((flags for pattern, flags in SHORT if re.search(f"^downpour {pattern}", command)), "")
        line = f"{command} {short}" if self.shortens and short else command
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        lean = [str(ROOT / "tests" / "lean")] if self.shortens else []
        environment = os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join([*lean, str(ROOT / "src")])}
        done = subprocess.run(["bash", "-c", line], cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def result(self, run_dir: str) -> dict[str, object]:
        """The summary of a run; one that is not shortened, or the first, was scored and has its picture."""
        run = self.folder / "runs" / run_dir
        if not self.shortens or run_dir == "quickstart":
            kinds = {json.loads(line)["kind"] for line in (run / "history.jsonl").read_text().splitlines()}
            assert "score" in kinds, "the evaluator has scored"
            assert (run / "learning_curve.png").exists()
        found: dict[str, object] = json.loads((run / "summary.json").read_text())
        return found

    def load_with_keras(self, file: str) -> str:
        """Of a process that cannot import Downpour."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [self.programs / "python", "-c", PLAIN_KERAS, self.folder / file]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the environment that `make quickstart` installs."""
    (extras,) = re.findall(r"--editable '\.\[([a-z,]+)\]'\n\ttouch \$@\n\n", (ROOT / "Makefile").read_text())
    return make_environment(tmp_path_factory.mktemp("environment") / "venv", extras.split(","))


def made(target: str) -> list[str]:
    """The commands of a target of the Makefile, without those that install."""
    text = (ROOT / "Makefile").read_text()
    (body,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    return [line.strip().replace("$(BIN)/", "") for line in body.splitlines()]


def follow(newcomer: Newcomer, page: str) -> None:
    """Types everything on a page that is not covered elsewhere, and looks at what it has made."""
    for name, text in files_of(ROOT / page).items():
        (newcomer.folder / name).write_text(text)
    for command in commands_of(ROOT / page):
        if covering(command):
            continue
        for part in command.split(" && "):
            if covering(part):
                continue
            program, name = part.split()[:2]
            for line in made(name) if part == "make quickstart" else [part] if program != "make" else []:
                look(newcomer, line, newcomer.type(line))


def covering(command: str) -> str:
    """The test that executes a command elsewhere."""
    return next((test for pattern, test in COVERED.items() if re.match(pattern, command)), "")


def look(newcomer: Newcomer, command: str, output: str) -> None:
    """Asserts that a command has done what it is for."""
    words = shlex.split(command)
    given = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    name = words[1] if words[0] == "downpour" else words[0]
    out = Path(str(newcomer.folder / given["out"].removeprefix("/"))) if "out" in given else newcomer.folder
    if name == "prepare":
        assert recipe.load("quickstart").data.num_labels == json.loads((out / "dataset.json").read_text())["num_labels"]
    elif name in ("local", "train"):
        assert output.splitlines()[-1].startswith("RESULT {")
        run_dir = given.get("run_dir", Path("runs", given.get("recipe", words[2])).stem).removeprefix("runs/")
        steps = newcomer.result(run_dir)["global_steps"]
        assert isinstance(steps, int) and steps >= (8 if "--resume" in words else 2)
        if "--set=cluster.num_ps=24" in words:  # and more shards than before, too, when it is shortened
            assert newcomer.result(run_dir)["num_ps"] == (3 if newcomer.shortens else 24)
    elif name == "status":
        assert output.startswith(f"{words[2]}: done, step"), output
    elif name == "top":
        assert "done, step" in output, output
    elif name == "report":
        assert (newcomer.folder / words[2] / "report.html").exists()
    elif name == "compare":
        assert "loss" in output and len(output.splitlines()) > 5, output
    elif name == "layout":
        shards = re.findall(r"^ *(\d+) ", output, re.MULTILINE)
        assert shards == [str(i) for i in range(17)], output
    elif name == "plan":
        result = json.loads(output.splitlines()[-1].removeprefix("RESULT "))
        assert (result["recipe"], result["num_workers"], result["num_ps"]) == (given["recipe"], 50, 17)
    elif name == "export":
        assert newcomer.load_with_keras(given["out"]).strip() == "(2, 130)"
    elif name == "certs":
        assert (out / "worker" / "tls.key").exists()
    elif command == "python shapes.py":
        assert len(list((newcomer.folder / "shapes").glob("*.png"))) == 1000
    elif name == "python" and words[1] == "train.py":
        assert newcomer.result("shapes")["global_steps"] == pytest.approx(100, abs=5)
        scores = ast.literal_eval(output[output.index("{") : output.index("}") + 1])
        # Plain Keras has 0.95 to 0.99, and 0.84 to 0.91; chance is a third. Two workers never do the same twice.
        assert scores["val_kind_accuracy"][-1] > 0.8 and scores["val_size_near"][-1] > 0.55, output
    elif name == "kubernetes":
        assert (out / "base" / "jobs" / "shards.yaml").exists()
    else:
        assert name in ("openssl", "(umask"), f"say here what {command!r} is for, or name in COVERED what executes it"


@pytest.mark.process
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_works_in_its_order(programs: Path, tmp_path: Path, page: str) -> None:
    (tmp_path / "shared").mkdir()
    follow(Newcomer(programs, tmp_path, shortens=True), page)
    if page == "docs/kubernetes.md":
        assert manifests.build(tmp_path / "deploy" / "base")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_readme_works_as_it_stands(programs: Path, tmp_path: Path) -> None:
    newcomer = Newcomer(programs, tmp_path, shortens=False)
    follow(newcomer, "README.md")
    assert newcomer.result("quickstart")["global_steps"] == pytest.approx(1400, abs=5)


@pytest.mark.parametrize("test", sorted(set(COVERED.values())))
def test_what_is_said_to_cover_a_command_exists(test: str) -> None:
    file, _, function = test.partition("::")
    assert f"def {function}" in (ROOT / file).read_text()


def test_what_is_said_to_be_covered_is_shown() -> None:
    lines = [part for page in PAGES for line in commands_of(ROOT / page) for part in line.split(" && ")]
    assert not [pattern for pattern in COVERED if not any(re.match(pattern, line) for line in lines)]
    assert {line.split()[0] for line in lines} >= {"make", "downpour", "kubectl", "pip", "sbatch"}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z-]+)", "\n".join(TEXTS.values()), re.M))))
def test_targets_of_make_exist_and_their_programs_take_what_they_are_given(target: str) -> None:
    for line in made(target):
        program, *arguments = shlex.split(line)
        if program == "downpour":
            assert arguments[0] in cli.COMMANDS
        elif arguments[:2] != ["-m", "pytest"]:
            assert program == "python" and arguments[0] == "-m", line
            if arguments[1] == "mkdocs":
                continue
            found = importlib.util.find_spec(arguments[1])
            assert found is not None and found.origin is not None, line
            for flag in re.findall(r"--(\w+)", line):
                assert re.search(rf"""["'](--)?{flag}["']""", Path(found.origin).read_text()), (line, flag)


def test_subcommands_named_in_the_text_exist() -> None:
    named = {
        name for names in re.findall(r"`downpour ([a-z|]+)", "\n".join(TEXTS.values())) for name in names.split("|")
    }
    assert "worker" in named
    assert named <= set(re.findall(r"^  ([a-z]+) ", cli.usage(), re.MULTILINE))


def test_flags_and_overrides_named_in_the_text_are_accepted() -> None:
    folders = ROOT / "launch", ROOT / "tests" / "benchmarks"
    sources = "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    known = set(re.findall(r'DEFINE_\w+(?:\(|,)\s*"(\w+)"', sources)) | {"python", "build-arg", "ntasks-per-node"}
    named = {flag for text in TEXTS.values() for flag in re.findall(r"`--([\w-]+)", text)}
    assert {"tls", "init_from", "gpus_per_worker"} <= named <= known, named - known
    spans = re.findall(r"`(--set=[^`\n]+)`", TEXTS["docs/recipes.md"])
    given = [shlex.split(span)[0] for span in spans if span != "--set=help" and "epochs" not in span]  # of which data
    assert len(given) >= 3
    for override in given:
        first = ["callbacks=EarlyStopping"] if "callbacks.0" in override else []  # as the text says
        recipe.load("quickstart", [*first, override.removeprefix("--set="), "exchange.overlap=False"])


def test_the_distribution_and_its_extras_are_those_of_the_page() -> None:
    arguments = setup_arguments()
    assert arguments["name"] == DISTRIBUTION == "downpour-training"
    page = TEXTS["docs/install.md"]
    assert f"dist/{DISTRIBUTION.replace('-', '_')}-{__version__}-py3-none-any.whl" in page
    (table,) = re.findall(r"^\| extra \|.*?\n\n", page, re.MULTILINE | re.DOTALL)
    rows = [row.split("|")[1] for row in table.splitlines()[2:] if row]
    assert {extra for row in rows for extra in re.findall(r"`([a-z0-9-]+)`", row)} == set(arguments["extras_require"])


def named_values(text: str) -> set[tuple[str, str]]:
    """Field and class, out of a table's rows such as "| `rule` | `SGD`, `Momentum` |"."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    return {(field, name) for field, cell in rows for name in re.findall(r"`([A-Z]\w*)", cell)}


def test_classes_named_in_the_text_can_be_chosen() -> None:
    named = named_values(TEXTS["docs/recipes.md"])
    assert ("rule", "RMSProp") in named
    unknown = {(field, name) for field, name in named if name not in Job.CHOICES.get(field, {})}
    assert not unknown


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        "downpour lokal --recipe=quickstart",
        "downpour local --recipe=quikstart",
        "downpour layout --recipe=quickstart --set=cluster.nmu_ps=11",
        "downpour certs --job=Quickstart --out=certs",
        "downpour plan --recipe=quickstart --seconds_per_stpe=2",
        "downpour kubernetes --recipe=quickstart --imag=a:1",
        "nonsense --of=somebody",
    ],
)
def test_a_wrong_command_is_noticed(programs: Path, tmp_path: Path, command: str) -> None:
    with pytest.raises(AssertionError):
        Newcomer(programs, tmp_path, shortens=True).type(command)
