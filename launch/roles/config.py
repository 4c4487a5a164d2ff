"""Parts of the roles' configurations: where a server listens, which checkpoints a run has, who may reach a process.

Plain values. Nothing here reads flags or the environment; `downpour.launch.roles.role_flags` makes them from flags.
Imports only what a shard has installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from downpour.proto.security.config import PLAIN, Security

Resume = Literal["no", "if_any", "yes"]


@dataclass(frozen=True)
class Listening:
    """Where a shard or chief listens.

    Attributes:
        host: Interface.
        port: Port; 0 for any.
        port_file: File to write the bound port to; None for none.
    """

    host: str = "0.0.0.0"
    port: int = 0
    port_file: Path | None = None


@dataclass(frozen=True)
class Access:
    """Identity of a process, access to it, its health service and its metrics.

    Attributes:
        security: Certificates and token.
        health_port: Port of grpc.health.v1, in plain text; None for none.
        metrics_port: Port of Prometheus' `/metrics`, in plain text; None or 0 for none.
        metrics_host: Address on which that is served; "" for every interface.
    """

    security: Security = PLAIN
    health_port: int | None = None
    metrics_port: int | None = None
    metrics_host: str = ""


@dataclass(frozen=True)
class Checkpoints:
    """Where a run's checkpoints are, and whether it continues from the newest one.

    Attributes:
        place: Path or URL; "" for `checkpoints` in the run's folder.
        resume: `yes`: continue, an error without a checkpoint; `if_any`: continue if there is one; `no`: a new run.
        overwrite: Whether a new run may remove an earlier one in the same folders.

    Raises:
        ValueError: `overwrite` is set and `resume` is not `no`.
    """

    place: str = ""
    resume: Resume = "no"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.overwrite and self.resume != "no":
            raise ValueError("--overwrite removes the run that --resume continues; leave one of them out")

    def of(self, run_dir: Path) -> str:
        """Path or URL of the checkpoints of a run."""
        return self.place or str(run_dir.absolute() / "checkpoints")

    def flags(self) -> dict[str, str | bool]:
        """The flags that pass these settings to a chief; defaults are left out."""
        values: dict[str, str | bool] = {
            "checkpoint_dir": self.place,
            "resume": self.resume == "yes",
            "resume_if_any": self.resume == "if_any",
            "overwrite": self.overwrite,
        }
        return {name: value for name, value in values.items() if value}
