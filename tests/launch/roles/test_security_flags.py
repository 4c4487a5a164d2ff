from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.process


@pytest.mark.parametrize(("soft", "hard", "after"), [(300, 3000, 3000), (300, 300, 300), (3000, 3000, 3000)])
def test_a_server_may_have_as_many_files_as_the_system_allows(
    run_python: RunPython, soft: int, hard: int, after: int
) -> None:
    code = f"""
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from downpour.launch.roles import security
os.umask(0o022)
security.prepare_server()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], oct(os.umask(0)))
"""
    done = run_python(code)
    assert done.stdout.split() == [str(after), "0o77"], done.stderr


@pytest.mark.parametrize(("module", "package"), [("cryptography", "cryptography"), ("OpenSSL", "pyOpenSSL")])
def test_nothing_of_security_needs_a_package_unless_it_is_asked_for(
    run_python: RunPython, tmp_path: Path, module: str, package: str
) -> None:
    hidden = f"import sys; sys.modules['{module}'] = None\n"
    shard = "from downpour.launch.ps import main; main()"
    done = run_python(hidden + shard, "--index=0")
    assert "listening on 0.0.0.0 in plain text would" in done.stderr, "it did not come that far"
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).write_text("x")
    done = run_python(hidden + shard, "--index=0", f"--tls={tmp_path}")
    assert done.returncode == 2
    message = f"TLS needs the package {package}; install it with pip install 'downpour-training[tls]'\n"
    assert done.stderr.endswith(message)


@pytest.mark.parametrize("flag", ["--port=70000", "--port=-1", "--health_port=65536"])
def test_a_port_that_there_cannot_be_is_refused(run_python: RunPython, flag: str) -> None:
    done = run_python("from downpour.launch.ps import main; main()", "--index=0", "--host=127.0.0.1", flag)
    assert done.returncode == 2
    name, _, value = flag.removeprefix("--").partition("=")
    assert f"flag --{name}={value}: {value} is not an integer in the range [0, 65535]" in done.stderr
