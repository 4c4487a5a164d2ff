"""Every benchmark runs, on a model small enough for seconds; what it finds is not looked at here, only that it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from downpour.ps.policy.rules import BY_NAME
from tests.benchmarks import cpu_account, fashion_mnist, hosts, shape
from tests.benchmarks.measure import Steps
from tests.launch.jobs import write_recipe

SMALL = [
    ["stem/kernel", [3, 3, 3, 64], "trained"],
    ["head/kernel", [256, 150], "trained"],
    ["head/bias", [150], "trained"],
    ["stem/moving_mean", [64], "statistic"],
]

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.json"
    file.write_text(json.dumps(SMALL))
    return file


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs a script with flags and returns its RESULT; fails if it leaves a process behind."""

    def call(module: str, *flags: str) -> dict[str, Any]:
        command = [sys.executable, "-m", f"tests.benchmarks.{module}", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=shape.ROOT, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        last = done.stdout.splitlines()[-1]
        assert last.startswith("RESULT "), done.stdout
        result: dict[str, Any] = json.loads(last.removeprefix("RESULT "))
        return result

    before = set(psutil.Process().children(recursive=True))
    yield call
    assert set(psutil.Process().children(recursive=True)) <= before


def load(small: Path, *more: str) -> list[str]:
    return [f"--variables={small}", "--shards=2", "--workers=3", "--warmup=0.1", "--seconds=0.5", *more]


def test_a_step_that_crosses_the_edge_counts_in_part() -> None:
    steps = Steps(ends=[10.0, 12.0, 13.0])
    assert steps.between(11.0, 12.5) == 0.5 + 0.5
    assert steps.ended_between(11.0, 13.0, [7.0, 8.0]) == [7.0]


def test_the_papers_model_is_the_papers() -> None:
    variables = shape.read_variables(shape.PAPER)
    assert sum(v.size for v in variables) == 80_083_763
    assert {v.name: v.shape for v in variables}["head/kernel"] == (2048, 18_291)
    layout = shape.layout_of(shape.PAPER, 17)
    assert sum(layout.variables[r.variable].name == "head/kernel" for r in layout.ranges) == 50


@pytest.mark.slow
@pytest.mark.process
def test_exchange(small: Path, run: Run) -> None:
    result = run("exchange", "--suite", "--nopeers", "--rounds=1", "--worker_processes=1", "--fleet=5",
                 "--fleet_compute_s=0.1", *load(small))  # fmt: skip
    assert result["steps_per_second_float32"] > 0 and result["steps_per_second_best"] > 0
    assert result["ratio_best"] is None  # TensorFlow was left out
    assert result["num_workers"] == 5 and result["ps_memory_mb"] > 0
    num_bytes = 2 * 4 * sum(v.size for v in shape.read_variables(small))
    assert result["mb_per_step_float32"] == pytest.approx(num_bytes / 1e6, rel=0.1)


@pytest.mark.process
@pytest.mark.slow
def test_scaling(small: Path, run: Run, tmp_path: Path) -> None:
    counts = ("--scaling_shards=1,2", "--scaling_workers=1,2", f"--out={tmp_path}", "--fleet_compute_s=0.1")
    result = run("exchange", "--scaling", *counts, *load(small))
    assert all(cost > 0 for costs in result["core_ms_per_step"].values() for cost in costs)
    assert (tmp_path / "scaling.png").stat().st_size > 1000


@pytest.mark.process
@pytest.mark.slow
def test_tensorflow(small: Path, run: Run) -> None:
    result = run("peers.tensorflow_ps", "--wire=bfloat16", *load(small, "--shards=1", "--workers=1"))
    assert result["steps_per_second"] > 0 and result["mb_per_step"] > 0


@pytest.mark.process
@pytest.mark.slow
def test_codecs(run: Run, tmp_path: Path) -> None:
    if not Path(fashion_mnist.FOLDER).is_dir():
        pytest.skip(f"no {fashion_mnist.FOLDER}; install Debian's dataset-fashion-mnist")
    short = ("--seeds=1", "--seconds=2", "--step_seconds=0.02", f"--out={tmp_path}")
    result = run("codecs", "--modes=float16,pull_int4", *short)
    assert all(0 < scores[0] < 1 for scores in result.values()) and set(result) == {"float16", "pull_int4"}
    assert (tmp_path / "fashion_mnist.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.process
def test_fidelity(run: Run, tmp_path: Path) -> None:
    if not Path(fashion_mnist.FOLDER).is_dir():
        pytest.skip(f"no {fashion_mnist.FOLDER}; install Debian's dataset-fashion-mnist")
    flags = ("--data=fashion", "--workers=2", "--simulated=3", "--seeds=1", "--set=num_steps=40", f"--out={tmp_path}")
    found = run("fidelity", *flags)
    assert set(found) == {"plain_mean", "plain_min", "workers_2", "simulated_3", "treatment"}
    assert found["treatment"].startswith("Lookahead") and (tmp_path / "fidelity.svg").exists()
    assert run("fidelity", *flags) == found, "trained again"


@pytest.mark.slow
@pytest.mark.process
def test_keras_examples(run: Run, tmp_path: Path) -> None:
    flags = ("--examples=convolutional_autoencoder", "--seeds=2", "--steps=4", f"--out={tmp_path}")
    found = run("keras_examples", *flags)["convolutional_autoencoder"]
    assert len(found["keras"]) == len(found["downpour"]) == 2 and all(0 < loss < 1 for loss in found["keras"])
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4
    assert run("keras_examples", *flags)["convolutional_autoencoder"] == found, "trained again"


@pytest.mark.slow
@pytest.mark.process
def test_whole_step(run: Run) -> None:
    result = run("whole_step", "--depth=18", "--image_size=32", "--labels=50", "--batch_size=2", "--steps=1")
    assert result["plain"] > 0 and result["downpour"] > 0


def test_kernels(run: Run) -> None:
    result = run("kernels", "--repetitions=1", "--elements=300000")
    assert set(BY_NAME) | {"triad"} <= set(result)
    assert all(part > 0 for part in result["logged_of_copied"].values())


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.xdist_group("hosts")
def test_thin_network(small: Path, run: Run) -> None:
    reason = hosts.obstacle()
    if reason:
        pytest.skip(reason)
    result = run("thin_network", "--modes=best", "--worker_hosts=1", *load(small))
    assert 0 < result["best"]["share_of_line"]
    assert "dp" not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.xdist_group("hosts")
def test_overlap(run: Run) -> None:
    """On a thin line overlap pays, and the chief finds it."""
    reason = hosts.obstacle()
    if reason:
        pytest.skip(reason)
    found = run("overlap", "--cases=1M@0.2s", "--rate_mbit=200", "--seconds=10")["1M@0.2s"]
    assert found["auto"]["overlaps"] and found["on"]["steps_per_second"] > 1.2 * found["off"]["steps_per_second"]
    assert found["of_the_better"] > 0.8


@pytest.mark.process
@pytest.mark.slow
def test_tls(small: Path, run: Run) -> None:
    flags = ("--modes=best", "--rounds=1", "--silent=200", "--seconds=3")
    result = run("tls", *load(small), *flags)
    assert result["cipher"].startswith("TLS_")
    assert result["best_ratio_tls"] > 0 and result["best_ratio_strangers"] > 0
    counted, knocked = result["strangers_counted"], result["strangers"]
    assert counted["connections"] - counted["connections_admitted"] >= 200 + knocked["others"] > 200


@pytest.mark.process
@pytest.mark.xdist_group("hosts")
@pytest.mark.slow
def test_fleet(small: Path, run: Run) -> None:
    """Lines are slow enough to be the limit, however busy this machine is: then the prediction must hold."""
    reason = hosts.obstacle()
    if reason:
        pytest.skip(reason)
    small.write_text(json.dumps([*SMALL, ["mid/kernel", [3, 3, 128, 256], "trained"]]))
    flags = ("--shards=3", "--workers=4", "--few=2", "--rates_mbit=20", "--compute_s=0.1", "--few_seconds=1")
    (found,) = run("fleet", f"--variables={small}", *flags)["runs"]
    assert found["bottleneck"] == "shards' network"
    assert 0.6 < found["steps_per_second"] / found["predicted_steps_per_second"] < 1.3
    predicted, _, measured = found["staleness"]["mean"]
    assert 2.5 < predicted < 3.5 and 2 < measured < 4.5, "three other workers"
    assert "dp" not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_input_is_measured_beside_tf_data(run: Run) -> None:
    result = run("input", "--pictures=40", "--rounds=1", "--batches=1", "--cores=1")
    assert result["pictures"] == 40
    for rates in result["cores_1"].values():
        assert all(rates[name] > 0 for name in ("ours", "tf.data", "bilinear", "ratio_to_tf.data"))


@pytest.mark.parametrize(
    ("chain", "group"),
    [
        ("loop:rmsprop_momentum < _PyEval_EvalFrameDefault@libpython3", "apply: update rule, statistics"),
        ("_copy_to_iter@kernel < tcp_recvmsg_locked@kernel < __libc_recvmsg@libc", "receive: kernel"),
        ("memmove@libc < _contig_to_contig@_multiarray_umath", "copy by numpy: undo log; worker: decode"),
        (
            "sgemm_kernel_HASWELL@libscipy_openblas64_-32a4b2a6 < sgemm_nt@libscipy_openblas64_-32a4b2a6",
            "apply: products x^T d",
        ),
        ("finish_task_switch.isra.0@kernel < __schedule@kernel < futex_wait@kernel", "wait: futex, epoll, switches"),
        ("_PyType_Lookup@libpython3", "Python"),
    ],
)
def test_a_sample_belongs_to_the_group_of_its_chain(chain: str, group: str) -> None:
    assert cpu_account.group_of(chain) == group


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_scoring_is_measured_in_the_evaluators_own_process(run: Run) -> None:
    small = ["model.depth=18", "model.width=4", "data.image_size=32", "data.num_labels=60", "cluster.num_ps=2"]
    found = run("scoring", "--images=200", "--scored=4", "--batch_size=2", *(f"--set={one}" for one in small))
    assert found["peak_rss_mb"] > found["evaluator_rss_mb"] > 100 and 0 < found["closure_share"] < 1
    assert set(found["scores"]) == {"map_at_100", "map_at_100_unweighted", "chance", "chance_weighted"}


@pytest.mark.slow
@pytest.mark.process
def test_reality(run: Run, tmp_path: Path) -> None:
    found = run("reality", "--workers=2", "--seeds=1", "--steps=100", f"--out={tmp_path}")
    assert 0 <= found["histograms_differ_mean"] < 1
    accuracy = found["2"]["accuracy"]
    assert accuracy["real"] > 0.5 and abs(accuracy["real"] - accuracy["simulated"]) < 0.2


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1000)
def test_the_papers_tree_goes_from_a_table_to_scores(run: Run, tmp_path: Path) -> None:
    small = ["model.depth=18", "model.width=4", "cluster.num_ps=2", "cluster.num_workers=1"]
    sizes = ["--images=60", "--trained=32", "--steps=2", f"--out={tmp_path / 'chain'}"]
    found = run("paper_chain", *sizes, *(f"--set={one}" for one in small))
    assert (found["num_labels"], found["depth"], found["widest"]) == (18_291, 12, 2_876)
    assert found["pictures"] == {"train": 32, "heldout": 60} and found["scored"] == 60
    assert found["global_steps"] >= 2 and found["evaluator_peak_rss_mb"] > 100 and found["images_per_s"] > 0
    assert 0 < found["closure_us"] < found["targets_us"] and 0 < found["closure_share"] < 0.01


@pytest.mark.slow
@pytest.mark.process
def test_watching(run: Run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    found = run("watching", f"--recipe={recipe}", "--rounds=1", "--steps=1500")
    assert found["speed_ratio"] > 0 and found["cost_ratio"] > 0 and len(found["bare"]) == len(found["watched"]) == 1
