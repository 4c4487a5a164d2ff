"""`downpour plan`: its bytes are those that real exchanges count, its advice follows from its limits."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.launch import plan
from downpour.launch.job import Job, recipe
from downpour.launch.planning import assumptions, demand, shard_costs
from downpour.launch.planning.assumptions import Assumptions
from downpour.launch.planning.demand import Cost, Costs
from downpour.proto import codec
from downpour.proto.security.config import Security
from downpour.ps import layout as layouts
from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, Layout, Variable
from downpour.ps.policy.pace import Sync
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.exchange import Exchanger, Gradients
from tests.benchmarks import shape
from tests.conftest import ServedShards
from tests.launch import jobs
from tests.launch.conftest import RunPython
from tests.worker.cluster import initialize

VARIABLES = [
    Variable("stem/kernel", (3, 3, 3, 999)),
    Variable("head/kernel", (64, 2_000), FACTORED),
    Variable("head/bias", (2_000,)),
    Variable("stem/moving_mean", (999,), STATISTIC),
    Variable("frozen/kernel", (70, 10), FROZEN),
]
MODES = {
    "float32": {"codec": "float32"},
    "bfloat16": {},
    "int8": {"push": "int8"},
    "int4": {"pull": "int4"},
    "smallest": {"push": "int8", "pull": "int8"},
}
COSTS = Costs(Cost(1e-3, 1e-9), Cost(1e-3, 5e-10), Cost(1e-3, 1e-9), Cost(1e-3, 1e-9))


def job_with(**exchange: Any) -> Job:
    job = recipe.load("paper_shape")
    return dataclasses.replace(job, batch_size=4, exchange=dataclasses.replace(job.exchange, **exchange))


def paper(num_shards: int = 17, **exchange: Any) -> tuple[Job, Layout]:
    job = dataclasses.replace(job_with(**exchange), batch_size=32)
    return job, shape.layout_of(shape.PAPER, num_shards, factored=True)


def gradients(layout: Layout, job: Job) -> Gradients:
    dtype = codec.WIRE_DTYPES[codec.CODECS[job.exchange.codec]]
    shards, rows = range(layout.num_shards), job.batch_size
    return Gradients(
        trained=[np.zeros(layout.num_trained(i) - layout.num_factored(i), dtype) for i in shards],
        statistics=[np.zeros(layout.num_pushed(i) - layout.num_trained(i), np.float32) for i in shards],
        versions=[0] * layout.num_shards,
        factors=[
            [
                (np.zeros((rows, group.num_inputs), dtype), np.zeros((rows, group.num_outputs), dtype))
                for group in layout.factored(i)
            ]
            for i in shards
        ],
    )


@pytest.mark.parametrize("mode", MODES)
def test_bytes_are_those_of_a_real_exchange(mode: str, served: ServedShards) -> None:
    job = job_with(**MODES[mode], publish_every=10**6)  # one publication
    layout = layouts.lay_out(VARIABLES, 2, [layouts.Slicing("head/*", 3)])
    addresses = served.start(2)
    initialize(addresses, layout, shape.initial_values(layout), job.rule, job.schedule)
    exchange = Exchanger(
        addresses, layout, wire=codec.CODECS[job.exchange.codec], worker=0, incarnation=1,
        push=codec.BLOCK_CODECS.get(job.exchange.push), differences=codec.BLOCK_CODECS.get(job.exchange.pull),
        publish_every=job.publish_every, give_up_after_s=30,
    )  # fmt: skip
    exchange.connect()
    first = exchange.start().result()
    second = exchange.start(gradients(layout, job)).result()
    exchange.close()
    assert second.bytes_pushed == sum(demand.push_bytes(layout, i, job) for i in range(2))
    assert second.bytes_pulled == pytest.approx(sum(demand.pull_bytes(layout, i, job) for i in range(2)), abs=1)
    whole = sum(demand.pull_bytes(layout, i, job_with(**MODES[mode] | {"pull": "live"})) for i in range(2))
    differences = second.bytes_pulled - 4 * 999 if job.publish_every else 0  # without statistics
    assert first.bytes_pulled == whole + differences


def test_the_papers_step_has_the_bytes_that_benchmarks_measured() -> None:
    """docs/benchmarks.md, "The exchange": 249 MB for bfloat16 with factors."""
    job, layout = paper()
    total = sum(demand.push_bytes(layout, i, job) + demand.pull_bytes(layout, i, job) for i in range(17))
    assert total == pytest.approx(249e6, rel=0.005)


def test_a_cost_goes_through_both_measurements() -> None:
    cost = Cost.through((1000, 0.002), (4000, 0.005))
    assert cost.of(1000) == pytest.approx(0.002) and cost.of(4000) == pytest.approx(0.005)
    assert Cost.through((1000, 0.002), (4000, 0.001)) == Cost(0.001, 0.0), "noise: the smaller shard was slower"
    assert Cost.through((1000, 0.001), (4000, 0.016)) == Cost(0.0, 0.004 / 1000), "no call costs less than nothing"
    assert Cost.through((1000, 0.001), (1000, 0.002)) == Cost(0.002, 0.0)


def test_given_costs_are_those_of_all_shards_together() -> None:
    job, layout = paper()
    pushes, pulls = demand.calls(layout, job, assumptions.known_costs(job, layout, 330.0))
    assert sum(call.shard_s for call in (*pushes, *pulls)) == pytest.approx(0.330)


@pytest.mark.parametrize(("publish_every", "publications"), [(40, 0.25), (10, 1.0)])
def test_a_pull_has_its_share_of_the_publications(publish_every: int, publications: float) -> None:
    job, layout = paper(pull="int8", publish_every=publish_every)
    job = dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, num_workers=10))
    alone = dataclasses.replace(job, exchange=dataclasses.replace(job.exchange, publish_every=10**9))
    blocks = codec.blocks_bytes(codec.INT8, layout.num_trained(0))
    more = demand.pull_bytes(layout, 0, job) - demand.pull_bytes(layout, 0, alone)
    assert more == pytest.approx(publications * blocks, rel=1e-6)
    often = dataclasses.replace(job, exchange=dataclasses.replace(job.exchange, publish_every=5))
    more = demand.pull_bytes(layout, 0, often) - demand.pull_bytes(layout, 0, alone)
    assert more == pytest.approx(2 * layout.num_trained(0), rel=1e-6), "every second one is missed"


@pytest.mark.parametrize(
    "cluster", [Assumptions(50, 10, 7.2), Assumptions(50, 2.5, 2.0), Assumptions(200, 25, 0.5, 0.1, 4)]
)
def test_the_shards_to_choose_are_the_fewest_that_are_enough(cluster: Assumptions) -> None:
    job, layout = paper()
    best = plan.enough_shards(job, layout, COSTS, cluster)
    assert best is not None
    wanted = assumptions.fleet_of(job, layout, COSTS, cluster).workers_limit()
    fewer = layouts.lay_out(layout.variables, best.num_shards - 1, job.slicing) if best.num_shards > 1 else None
    assert assumptions.fleet_of(job, best, COSTS, cluster).shards_limit() >= wanted / 0.8
    assert fewer is None or assumptions.fleet_of(job, fewer, COSTS, cluster).shards_limit() < wanted / 0.8
    # What the advice is for: with it the workers go on almost as if they were alone.
    predicted = plan.report(job, best, COSTS, cluster)[1]
    assert predicted["steps_per_second"] > 0.85 * wanted
    assert predicted["bottleneck"].startswith("workers'")


def test_no_number_of_shards_is_enough() -> None:
    job, layout = paper()
    text, result = plan.report(job, layout, COSTS, Assumptions(1000, 0.1, 0.0))
    assert result["shards_to_choose"] is None and "no number of shards up to 100 is enough" in text
    assert result["bottleneck"] == "shards' network"


def test_the_papers_fleet() -> None:
    """6.94 steps a second of 50 workers: 7.2 s a step, if nothing else held them up."""
    job, layout = paper(overlap=True)
    text, result = plan.report(job, layout, COSTS, Assumptions(50, 10, 7.2))
    assert result["steps_per_second"] == pytest.approx(6.94, rel=0.02)
    assert result["bottleneck"] == "workers' compute" and "bottleneck: workers' compute" in text
    assert sum(result["staleness_histogram"]) > 1000
    assert result["staleness_mean"] == pytest.approx(98, rel=0.05), "with overlap; 49 without"


@pytest.mark.parametrize("key", ["pace", "cadence"])
def test_what_the_model_does_not_know_is_refused(key: str) -> None:
    job = recipe.load("quickstart", ["exchange.overlap=False", "pace=Sync(num_gradients=2)"]
                      if key == "pace" else ["cadence=Accumulate(num_batches=4)"])  # fmt: skip
    with pytest.raises(ValueError, match=rf"^{key} is (Sync|Accumulate); plan predicts .* only"):
        plan.check(job)
    assert key == "cadence" or isinstance(job.pace, Sync)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 10, 1), "--workers=0; give 1 to 1024"),
        ((1025, 10, 1), "--workers=1025"),
        ((1, 0, 1), "--gbit=0; give a number above 0"),
        ((1, math.nan, 1), "--gbit=nan"),
        ((1, 10, -1), "--seconds_per_step=-1; give a number of at least 0"),
        ((1, 10, math.inf), "--seconds_per_step=inf"),
        ((1, 10, 1, -0.1), "--spread=-0.1"),
        ((1, 10, 1, 0.1, 0), "--cores_per_shard=0"),
    ],
)
def test_a_cluster_that_cannot_be(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Assumptions(*values)  # type: ignore[arg-type]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "downpour.launch.cli", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.process
def test_the_command_measures_and_predicts(tmp_path: Path) -> None:
    tiny = jobs.write_recipe(tmp_path)
    done = run(f"--recipe={tiny}", "--workers=3", "--gbit=1", "--seconds_per_step=0.5", "--measure_s=0.2")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    result = json.loads(last.removeprefix("RESULT "))
    assert (result["recipe"], result["num_ps"], result["num_workers"]) == ("tiny", 2, 3)
    assert result["steps_per_second"] == pytest.approx(6, rel=0.1) and result["bottleneck"] == "workers' compute"
    assert result["shard_core_ms_per_step"] > 0.1 and result["worker_core_ms_per_step"] > 0.1
    assert result["shards_to_choose"] == 1 and 150 < result["shard_memory_mb"] < 160


@pytest.mark.process
@pytest.mark.parametrize("mutual_tls", [True, False])
def test_costs_are_those_of_calls_over_tls_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, *, mutual_tls: bool
) -> None:
    """A shard with certificates refuses a client without, and the other way round; so the clients tell."""
    securities: list[Security] = []

    class Noted(ShardClient):
        def __init__(self, *arguments: Any) -> None:
            securities.append(arguments[-1])
            super().__init__(*arguments)

    monkeypatch.setattr(shard_costs, "ShardClient", Noted)
    layout = layouts.lay_out(VARIABLES, 2, [layouts.Slicing("head/*", 3)])
    costs = shard_costs.measure(job_with(), layout, 0.1, mutual_tls=mutual_tls)
    assert costs.shard_push.of(layout.size(0)) > 0
    assert securities and all(bool(security.certificates) is mutual_tls for security in securities)


def test_without_the_packages_of_tls_it_names_the_way_out(run_python: RunPython) -> None:
    code = "import sys; sys.modules['OpenSSL'] = None\nfrom downpour.launch.plan import main; main()"
    done = run_python(code, "--recipe=paper_shape", "--seconds_per_step=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(
        "install it with pip install 'downpour-training[tls]', or give --nomutual_tls to plan for plain text\n"
    )


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no recipe; give --recipe=NAME"),
        (("--recipe=paper_shape",), "no --seconds_per_step; give"),
        (("--recipe=paper_shape", "--seconds_per_step=1", "--workers=0"), "--workers=0; give 1 to 1024"),
        (("--recipe=paper_shape", "--seconds_per_step=1", "--measure_s=0"), "--measure_s=0; give"),
        (
            ("--recipe=quickstart", "--seconds_per_step=1", "--set=pace=Bounded(lead=4)"),
            "pace is Bounded; plan predicts",
        ),
        (("--recipe=jft300m", "--seconds_per_step=1", "--set=data.num_labels=0"), "num_labels is 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
