"""Who may import whom, and where TensorFlow may appear: read from the source, not from a running process."""

from __future__ import annotations

import dis
import subprocess
import sys
from pathlib import Path
from types import CodeType, ModuleType

import pytest

import downpour

ROOT = Path(__file__).parents[1]
# Belongs to no folder and imports none, so that all may import it.
COMMON = {name for name, value in vars(downpour).items() if not isinstance(value, ModuleType)} | {"files", "compiled"}
ALLOWED = {
    "proto": {"proto"},
    "ps": {"proto", "ps"},
    "model": {"model"},
    "worker": {"proto", "ps", "model", "worker"},
    "launch": {"proto", "ps", "model", "worker", "launch"},
}
WITH_TENSORFLOW = {
    "launch/fitting/classes.py",
    "worker/step/assigned.py",
    "worker/step/clipping.py",
    "worker/step/constraints.py",
    "worker/step/damping.py",
    "worker/evaluator/evaluator.py",
    "worker/evaluator/scoring.py",
    "worker/step/examine.py",
    "worker/step/factors.py",
    "worker/step/flat.py",
    "worker/step/forward.py",
    "worker/step/sharing.py",
    "worker/step/step.py",
    "worker/step/traced.py",
    "worker/step/variables.py",
    "launch/features.py",
    "launch/fit.py",
    "launch/fitting/callbacks.py",
    "launch/fitting/run.py",
    "launch/fitting/values.py",
    "launch/job/build.py",
    "launch/job/compiled/learning_rate.py",
    "launch/job/compiled/model.py",
    "launch/job/compiled/optimizer.py",
    "launch/job/given_model.py",
    "launch/job/loading.py",
    "launch/job/written.py",
    "launch/local/preflight.py",
    "launch/planning/trainable.py",
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; of `from a import b` both `a` and `a.b`.

    From its byte code: `ast.parse` of Python 3.11 may fail in a process with other threads.
    """
    found = set()
    codes = [compile(path.read_text(), str(path), "exec")]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        module = ""
        for instruction in dis.get_instructions(code):
            if instruction.opname == "IMPORT_NAME":
                module = instruction.argval
                found.add(module)
            elif instruction.opname == "IMPORT_FROM":
                found.add(f"{module}.{instruction.argval}")
    return found


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_folders_import_only_what_they_may(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        ours = {name.split(".")[1] for name in imports(file) if name.startswith("downpour.")} - COMMON
        assert ours <= ALLOWED[folder], f"{file.relative_to(ROOT)} imports {ours - ALLOWED[folder]}"


def test_what_is_common_imports_no_folder() -> None:
    """But what is public, on its first use."""
    for file in sorted((ROOT / "src" / "downpour").glob("*.py")):
        found = {name for name in imports(file) if name.startswith("downpour")}
        public = {"downpour.launch.fit", "downpour.launch.fit.fit"}
        public |= {"downpour.worker.chief.sinks", "downpour.worker.chief.sinks.Sink"}
        public |= {"downpour.worker.chief.tensorboard", "downpour.worker.chief.tensorboard.TensorBoard"}
        assert found <= public, file.name
    loaded = "import downpour, sys; sys.exit(any(name.startswith('downpour.') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


def test_tensorflow_stays_where_it_belongs() -> None:
    users = set()
    for folder in ALLOWED:
        for file in (ROOT / folder).rglob("*.py"):
            if imports(file) & {"tensorflow", "keras"}:
                users.add(str(file.relative_to(ROOT)))
    assert {name for name in users if not name.startswith("model/")} == WITH_TENSORFLOW
