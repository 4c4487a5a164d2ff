from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from downpour.launch import certs
from downpour.proto.security import tls

RUN = "from downpour.launch.cli import main; main()"


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_role_gets_a_certificate_of_the_job_and_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    certs.make("fashion", tmp_path / "certs", days=30)
    ca = load(tmp_path / "certs" / "ca.crt")
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    for role in tls.ROLES:
        folder = tmp_path / "certs" / role
        assert sorted(path.name for path in folder.iterdir()) == ["ca.crt", "tls.crt", "tls.key"]
        assert tls.check(folder, tls.read(folder), role).job == "fashion"
        leaf = load(folder / "tls.crt")
        leaf.verify_directly_issued_by(ca)
        key = leaf.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
        assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 30
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    keys = [*(tmp_path / "certs").rglob("*.key")]
    assert len(keys) == 1 + len(tls.ROLES)
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_run_again_it_keeps_the_ca_and_renews_the_leaves(tmp_path: Path) -> None:
    certs.make("fashion", tmp_path)
    before = contents(tmp_path)
    certs.make("fashion", tmp_path)
    after = contents(tmp_path)
    changed = {path.relative_to(tmp_path).as_posix() for path in after if after[path] != before[path]}
    assert changed == {f"{role}/{name}" for role in tls.ROLES for name in ("tls.crt", "tls.key")}


@pytest.mark.parametrize("spoil", ["another job", "no key", "no certificate", "a key of another", "garbage"])
def test_a_folder_that_is_not_this_jobs_is_left_as_it_is(tmp_path: Path, spoil: str) -> None:
    folder = tmp_path / "certs"
    certs.make("other" if spoil == "another job" else "fashion", folder)
    if spoil == "no key":
        (folder / "ca.key").unlink()
    elif spoil == "no certificate":
        (folder / "ca.crt").unlink()
    elif spoil == "a key of another":
        certs.make("fashion", tmp_path / "another")
        (folder / "ca.key").write_bytes((tmp_path / "another" / "ca.key").read_bytes())
    elif spoil == "garbage":
        (folder / "ca.crt").write_text("garbage")
    before = contents(folder)
    with pytest.raises(ValueError, match=r"; nothing was written; give another --out"):
        certs.make("fashion", folder)
    assert contents(folder) == before


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--job=Fashion", "--out=x"], "job name 'Fashion' is no DNS label (RFC 1123); give 1 to 63 small letters,"),
        (["--job=-x", "--out=x"], "job name '-x' is no DNS label"),
        (["--job=a.b", "--out=x"], "job name 'a.b' is no DNS label"),
        ([f"--job={'x' * 64}", "--out=x"], "is no DNS label"),
        (["--job=x"], "give --job=NAME and --out=FOLDER"),
        (["--job=x", "--out=x", "--days=0"], "--days=0; give 1 to 3650"),
        (["--job=x", "--out=/proc/x"], "/proc/x: No such file or directory; give another --out"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-c", RUN, "certs", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_the_longest_job_name_works(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, "certs", f"--job={'x' * 63}", "--out=certs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=True)
    assert "--tls=certs/ROLE" in done.stdout
    assert tls.check(tmp_path, tls.read(tmp_path / "certs" / "evaluator"), "evaluator").job == "x" * 63
