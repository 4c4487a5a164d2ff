"""Which role may call which method. Pure.

No role may call a method that is not listed.
"""

from __future__ import annotations

from collections.abc import Iterable

from downpour.proto.errors import Forbidden
from downpour.proto.security import tls

_ANY = frozenset(tls.ROLES)

MAY_CALL: dict[str, frozenset[str]] = {
    "ParameterServer/Status": _ANY,
    "ParameterServer/Push": frozenset({"worker"}),
    "ParameterServer/Pull": frozenset({"worker"}),
    "ParameterServer/PushPull": frozenset({"worker"}),
    "ParameterServer/Initialize": frozenset({"chief"}),
    "ParameterServer/Restore": frozenset({"chief"}),
    "ParameterServer/WriteCheckpoint": frozenset({"chief"}),
    "ParameterServer/Absent": frozenset({"chief"}),
    "ParameterServer/SetRate": frozenset({"chief"}),
    "ParameterServer/Stop": frozenset({"chief"}),
    "Chief/Register": frozenset({"worker"}),
    "Chief/Report": frozenset({"worker"}),
    "Chief/Lease": frozenset({"worker"}),
    "Chief/NextCheckpoint": frozenset({"evaluator"}),
    "Chief/ReportScore": frozenset({"evaluator"}),
    "Chief/Leaving": frozenset({"ps"}),
    "Chief/Progress": _ANY,
}
_PACKAGE = "/downpour.v1."


def refusal(method: str, names: Iterable[str], job: str) -> Forbidden | None:
    """Returns why a caller may not call a method; None if it may.

    Args:
        method: Its path, as gRPC writes it.
        names: DNS names in the caller's certificate.
        job: Job of this process.
    """
    role = tls.role_in(names, job)
    name = method.removeprefix(_PACKAGE)
    allowed = MAY_CALL.get(name, frozenset())
    if role in allowed:
        return None
    who = f"role {role!r}" if role else f"a certificate that names no role of job {job!r}"
    accepted = " or ".join(sorted(allowed)) or "nobody"
    return Forbidden(f"{who} may not call {name}, {accepted} may; give every process its own role's --tls folder")
