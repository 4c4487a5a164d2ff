"""The committed generated code is what the .proto files give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generated_code_matches_the_proto_files(tmp_path: Path) -> None:
    protos = sorted((ROOT / "proto").glob("*.proto"))
    assert protos
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-Isrc"),
            *(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}"),
            *(f"src/downpour/proto/{proto.name}" for proto in protos),
        ],
        cwd=ROOT,
        check=True,
    )
    made = sorted((tmp_path / "downpour" / "proto").iterdir())
    assert len(made) == 3 * len(protos)
    for file in made:
        assert file.read_text() == (ROOT / "proto" / file.name).read_text(), f"{file.name}: run `make proto`"
