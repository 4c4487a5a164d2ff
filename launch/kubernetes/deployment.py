"""The requested job on Kubernetes, and the command line of every role. Pure.

The cluster is one `downpour.launch.roles.topology.Topology`, and all commands come from `topology.command`. A pod
gets its index from its Job (`$(JOB_COMPLETION_INDEX)`, which Kubernetes puts into arguments) or, in a TFJob, from
TF_CONFIG.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from downpour.launch.job import Job
from downpour.launch.kubernetes import names
from downpour.launch.kubernetes.sizes import Sizes
from downpour.launch.roles import topology
from downpour.launch.roles.topology import ROLES, FlagValue, Topology

INDEX = "$(JOB_COMPLETION_INDEX)"

# From SIGTERM, seconds in which a shard waits for a checkpoint by the chief, and after which it is killed.
SHARD_GRACE_S, KILL_AFTER_S = 20, 30

# A TFJob fails when one of its processes gives up on another, which may not have a machine yet.
_TF_JOB_GIVE_UP_AFTER_S = 1800

HostOf = Callable[[str, str, int], str]


@dataclass(frozen=True)
class Deployment:
    """A job on Kubernetes.

    Attributes:
        name: Name of the job.
        namespace: Namespace of all objects; "" for the one that `kubectl` is set to.
        job: Job of the recipe with its overrides.
        recipe_file: Name of the recipe's file, in the ConfigMap.
        recipe_text: Text of that file.
        overrides: Each `key=value`, as every role but the shards gets them.
        image: Image of worker, chief and evaluator.
        shard_image: Image of shards.
        sizes: Memory of the processes.
        gpus_per_worker: GPUs of one worker.
        checkpoint_dir: URL of the checkpoints' folder; "" for the claim.
        storage: Size of the claim.
        storage_class: Class of the claim; "" for the cluster's default.
        data_claim: A claim that holds the training data; "" if no data is read from one.
        log_format: `--log_format` of every process.
    """

    name: str
    namespace: str
    job: Job
    recipe_file: str
    recipe_text: str
    overrides: tuple[str, ...]
    image: str
    shard_image: str
    sizes: Sizes
    gpus_per_worker: int = 0
    checkpoint_dir: str = ""
    storage: str = "10Gi"
    storage_class: str = ""
    data_claim: str = ""
    log_format: str = "text"

    @cached_property
    def topology(self) -> Topology:
        """Addresses when Indexed Jobs run the job."""
        return self.cluster(names.host)

    def cluster(self, host: HostOf) -> Topology:
        """Addresses with the host names of `host(job, role, index)`."""
        cluster = self.job.cluster
        return Topology(
            ps=tuple(f"{host(self.name, 'ps', i)}:{names.PORTS['ps']}" for i in range(cluster.num_ps)),
            chief=f"{host(self.name, 'chief', 0)}:{names.PORTS['chief']}",
            num_workers=cluster.num_workers,
        )

    def count(self, role: str) -> int:
        """How many processes a role has."""
        cluster = self.job.cluster
        return {"ps": cluster.num_ps, "worker": cluster.num_workers, "evaluator": cluster.num_evaluators}.get(role, 1)

    def image_of(self, role: str) -> str:
        """Image of a role's container."""
        return self.shard_image if role == "ps" else self.image

    def uses_run_claim(self, role: str) -> bool:
        """Whether a role needs the claim: the chief's journal is on it, and checkpoints unless they go to a URL."""
        return role == "chief" or (role in ("ps", "evaluator") and not self.checkpoint_dir)

    def uses_data(self, role: str) -> bool:
        """Whether a role reads the training data."""
        return bool(self.data_claim) and role != "ps"

    def command(self, role: str, where: Topology) -> list[str]:
        """Command of a pod of an Indexed Job, as `containers[].command`."""
        flags = self._flags(role) | _addresses(role, where)
        command = [_literal(word) for word in topology.command(role, 0, flags, python="python")]
        if role in ("ps", "worker"):
            command[command.index("--index=0")] = f"--index={INDEX}"
        elif self.count(role) > 1:
            command.append(f"--index={INDEX}")
        if role == "ps":
            command.append(f"--arena={names.ARENA}/shard-{INDEX}.arena")
        return command

    def tf_config_command(self, role: str) -> list[str]:
        """Command of a pod of a TFJob, whose TF_CONFIG has index, addresses and the port to listen on."""
        told = {key: value for key, value in self._flags(role).items() if key != "port"}
        if role != "ps" and self.job.exchange.give_up_after_s < _TF_JOB_GIVE_UP_AFTER_S:
            told["set"] = (*self.overrides, f"exchange.give_up_after_s={_TF_JOB_GIVE_UP_AFTER_S}")
        command = [_literal(word) for word in topology.command(role, 0, told, python="python")]
        if role in ("ps", "worker"):
            command.remove("--index=0")
        if role == "ps":
            command.append(f"--arena={names.ARENA}/shard.arena")
        return command

    def _flags(self, role: str) -> dict[str, FlagValue]:
        """Flags of a role, without its index and the addresses of others."""
        assert role in ROLES, role
        values: dict[str, FlagValue] = {}
        if role != "ps":
            values |= {"recipe": f"{names.RECIPE}/{self.recipe_file}", "set": self.overrides}
        if role in names.PORTS:
            values |= {"host": "0.0.0.0", "port": names.PORTS[role]}
        if role == "chief":
            values |= {
                "run_dir": names.RUN,
                "checkpoint_dir": self.checkpoint_dir,
                "resume_if_any": True,
                "stop_shards": True,
            }
        if role == "ps":
            values |= {"grace_s": str(SHARD_GRACE_S)}
        return values | {
            "tls": names.TLS,
            "token_file": f"{names.TOKEN}/token",
            "health_port": names.HEALTH_PORT,
            "metrics_port": names.METRICS_PORT,
            "log_format": self.log_format if self.log_format != "text" else None,
        }


def _addresses(role: str, where: Topology) -> dict[str, FlagValue]:
    """Flags with the addresses of other roles."""
    if role == "ps":
        return {"chief": where.chief}
    return {key: value for key, value in where.flags().items() if (role, key) != ("chief", "chief")}


def _literal(word: str) -> str:
    """Doubles each $, since Kubernetes replaces $(NAME) in arguments by a variable."""
    return word.replace("$", "$$")
