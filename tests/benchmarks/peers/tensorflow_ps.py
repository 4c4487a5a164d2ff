"""TensorFlow's own parameter servers under the load that ours are measured by.

    python -m tests.benchmarks.peers.tensorflow_ps --wire=bfloat16 [--workers=3] [--seconds=20]

One process a task, TensorFlow's distributed runtime over gRPC, between-graph asynchronous training. A step brings every
variable to the worker, then applies RMSProp with momentum 0.9 on the servers to gradients that live on the worker; no
model is computed. Variables are the pieces of our own layout, each on the server where our layout has its shard; the
statistics are added, as ours are. With `--wire=bfloat16` servers cast before they send and after they receive.

Prints a table and a last line `RESULT {json}`. The task of each process is in a hidden flag, `--task`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from absl import flags

from downpour.launch.local.scratch import scratch_folder
from downpour.launch.roles import entry
from downpour.ps.layout import TRAINED, Range, Variable
from tests.benchmarks import shape
from tests.benchmarks.measure import (
    HEADING,
    Measurement,
    as_json,
    measure,
    take_steps,
    wait_for_window,
    write_result,
)
from tests.benchmarks.processes import Processes

WIRES = ("float32", "bfloat16")
_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
    "TF_GRPC_REUSE_PORT": "1",  # the port is reserved by the parent's socket, which stays bound to it
}
# Two threads each, as there are two cores for twenty processes; with its default of all cores it is no faster.
_NUM_THREADS = 2


@dataclass(frozen=True)
class Load:
    """What to measure; the fields mean what those of `tests.benchmarks.cluster.Load` do."""

    wire: str = "bfloat16"
    variables: Path = shape.PAPER
    num_shards: int = 17
    num_workers: int = 4
    warmup_s: float = 3.0
    seconds: float = 15.0


@dataclass(frozen=True)
class Task:
    """What one process of the cluster must know."""

    job: str
    index: int
    cluster: dict[str, list[str]]
    wire: str
    variables: str


def run(load: Load) -> Measurement:
    """Measures TensorFlow's servers under a load.

    Raises:
        ValueError: A process failed.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        processes = stack.enter_context(Processes(scratch))
        cluster = {
            "ps": [_reserve_address(stack) for _ in range(load.num_shards)],
            "worker": [_reserve_address(stack) for _ in range(load.num_workers)],
        }
        started = {
            job: [
                processes.start(
                    f"{job}/{i}", _command(Task(job, i, cluster, load.wire, str(load.variables))), _ENVIRONMENT
                )
                for i in range(len(addresses))
            ]
            for job, addresses in cluster.items()
        }
        measurement, _ = measure(started["ps"], started["worker"], warmup_s=load.warmup_s, seconds=load.seconds)
    return measurement


def _reserve_address(stack: ExitStack) -> str:
    """A port that stays ours: bound here, never listened on, and shared with the task alone."""
    reservation = stack.enter_context(socket.socket())
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{reservation.getsockname()[1]}"


def _command(task: Task) -> list[str]:
    module = "tests.benchmarks.peers.tensorflow_ps"
    return [sys.executable, "-m", module, f"--die_with_parent={os.getpid()}", f"--task={json.dumps(asdict(task))}"]


def _run_task(task: Task) -> None:
    """A server until it is killed, or a worker until its steps are done."""
    import tensorflow as tf

    v1 = tf.compat.v1
    v1.disable_eager_execution()
    config = v1.ConfigProto(inter_op_parallelism_threads=_NUM_THREADS, intra_op_parallelism_threads=_NUM_THREADS)
    server = v1.train.Server(task.cluster, job_name=task.job, task_index=task.index, config=config)
    if task.job == "ps":
        server.join()
    pull, push = _build_graph(tf, task)
    session = v1.Session(server.target, config=config)
    _initialize(v1, session, is_first=task.index == 0)
    session.run(pull)
    session.run(push)
    steps = take_steps(lambda: (_seconds(session, push), _seconds(session, pull)), wait_for_window())
    write_result([replace(steps, pushes=len(steps.push_s) + 1)])


def _seconds(session: Any, operation: Any) -> float:
    begin = time.monotonic()
    session.run(operation)
    return time.monotonic() - begin


def _initialize(v1: Any, session: Any, *, is_first: bool) -> None:
    """The first worker initialises the servers; every worker its own gradients."""
    if is_first:
        session.run(v1.global_variables_initializer())
    missing = v1.report_uninitialized_variables()
    while session.run(missing).size:
        time.sleep(0.2)
    session.run(v1.variables_initializer(v1.get_collection("local")))


def _build_graph(tf: Any, task: Task) -> tuple[Any, Any]:
    """The operations that pull and push all pieces of the layout."""
    layout = shape.layout_of(Path(task.variables), len(task.cluster["ps"]))
    reads: list[Any] = []
    updates: list[Any] = []
    for number, piece in enumerate(layout.ranges):
        variable = layout.variables[piece.variable]
        read, update = _piece(tf, task, f"piece{number}", variable, piece)
        reads.append(read)
        updates.append(update)
    with tf.device(f"/job:worker/task:{task.index}"):
        pull = tf.compat.v1.add_n(reads)
    return pull, tf.group(*updates)


def _piece(tf: Any, task: Task, name: str, variable: Variable, piece: Range) -> tuple[Any, Any]:
    """One piece: a number that can only be had by bringing it to the worker, and its update."""
    on_server, on_worker = f"/job:ps/task:{piece.shard}", f"/job:worker/task:{task.index}"
    is_trained = variable.kind == TRAINED
    wire = tf.as_dtype(task.wire if is_trained else "float32")  # statistics travel as float32, as ours do

    def vector(suffix: str, initial: float, **more: Any) -> Any:
        constant = tf.compat.v1.constant_initializer(initial)
        return tf.compat.v1.get_variable(
            name + suffix, (piece.size,), initializer=constant, use_resource=True, trainable=False, **more
        )

    with tf.device(on_server):
        value = vector("", 0.02)
        sent = tf.cast(value.read_value(), wire)
    with tf.device(on_worker):
        read = tf.cast(tf.identity(sent)[0], tf.float32)
        gradient = vector(f"_gradient{task.index}", 1e-3, dtype=wire, collections=["local"]).read_value()
    with tf.device(on_server):
        received = tf.cast(gradient, tf.float32)
        if not is_trained:
            return read, value.assign_add(received, read_value=False)
        update = tf.raw_ops.ResourceApplyRMSProp(
            var=value.handle,
            ms=vector("_ms", 1.0).handle,
            mom=vector("_mom", 0.0).handle,
            lr=1e-6,
            rho=0.9,
            momentum=0.9,
            epsilon=1e-10,
            grad=received + shape.WEIGHT_DECAY * value.read_value() if variable.weight_decay else received,
        )
    return read, update


def define_flags() -> Callable[[], int | None]:
    """Defines this script's flags; returns what reads them and runs."""
    task = flags.DEFINE_string("task", None, "A `Task` as JSON; set by this script for its processes.")
    wire = flags.DEFINE_enum("wire", "bfloat16", WIRES, "What parameters and gradients travel as.")
    variables = flags.DEFINE_string("variables", str(shape.PAPER), "File that lists the model's variables.")
    num_shards = flags.DEFINE_integer("shards", 17, "Parameter servers.", lower_bound=1)
    num_workers = flags.DEFINE_integer("workers", 4, "Workers.", lower_bound=1)
    warmup_s = flags.DEFINE_float("warmup", 3.0, "Seconds of work before the window.", lower_bound=0)
    seconds = flags.DEFINE_float("seconds", 15.0, "Length of the window.", lower_bound=0.1)

    def start() -> int | None:
        if task.value:
            _run_task(Task(**json.loads(task.value)))
            return None
        load = Load(
            wire.value, Path(variables.value), num_shards.value, num_workers.value, warmup_s.value, seconds.value
        )
        measurement = run(load)
        print(f"tensorflow {load.wire}, {load.num_workers} workers, {load.num_shards} servers\n{HEADING}")
        print(measurement.row())
        print(f"RESULT {json.dumps(as_json(measurement, system='tensorflow', wire=load.wire))}", flush=True)
        return None

    return start


def main() -> None:
    """See the module."""
    entry.run(define_flags(), role="tensorflow")


if __name__ == "__main__":
    main()
