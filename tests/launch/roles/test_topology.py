from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from absl import flags

from downpour.launch.job import Cluster
from downpour.launch.roles import entry, topology

CLUSTER = {"ps": ["a:1", "b:2"], "worker": ["c:3", "d:4", "e:5"], "chief": ["f:6"]}


def tf_config(task=("worker", 1), **changes):
    cluster = {key: value for key, value in (CLUSTER | changes).items() if value is not None}
    return json.dumps({"cluster": cluster, "task": {"type": task[0], "index": task[1]}, "environment": "cloud"})


def fake_job(num_ps=2, num_workers=3, max_workers=0):
    cluster = Cluster(num_ps=num_ps, num_workers=num_workers, max_workers=max_workers)
    return SimpleNamespace(name="fake", cluster=cluster)


@pytest.fixture
def parse(monkeypatch):
    """`parse("worker", "--ps=...")`: defines the role's flags and reads a command line into them."""

    def read(role, *arguments):
        monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
        topology.define_flags(role)
        flags.FLAGS(["program", *arguments])

    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(entry, "_role", "downpour")
    return read


def test_tf_config_of_a_tfjob():
    where, role, index = topology.from_tf_config(tf_config())
    assert where == topology.Topology(("a:1", "b:2"), "f:6", num_workers=3, evaluator=False)
    assert (role, index) == ("worker", 1)


def test_master_is_a_chief_and_the_evaluator_needs_no_place_in_the_cluster():
    where, role, _ = topology.from_tf_config(tf_config(("master", 0), chief=None, master=["m:1"]))
    assert (where.chief, role) == ("m:1", "chief")
    where, role, _ = topology.from_tf_config(tf_config(("evaluator", 0)))
    assert (where.evaluator, role) == (True, "evaluator")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cluster": {"ps": [', "not JSON"),
        ("[]", "no object 'cluster'"),
        ('{"task": {"type": "ps", "index": 0}}', "no object 'cluster'"),
        ('{"cluster": {"ps": ["a:1"]}}', "no object 'task'"),
        ('{"sparseCluster": {}}', "dynamic workers"),
        (tf_config(chief=None), "names 0 chiefs"),
        (tf_config(ps=[]), "0 ps"),
        (tf_config(worker=None), "0 workers"),
        (tf_config(ps="a:1"), "list of 'host:port'"),
        (tf_config(ps=["a"]), "address 'a'"),
        (tf_config(ps=["a:1", "a:1"]), "two shards have the address a:1"),
        (tf_config(("trainer", 0)), "task type is 'trainer'; accepted are ps, worker, chief, evaluator"),
        (tf_config(("worker", 3)), "index is 3, but the cluster has 3"),
        (tf_config(("worker", -1)), "index is -1"),
        (tf_config(("worker", "x")), "index is 'x'"),
    ],
)
def test_broken_tf_config_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        topology.from_tf_config(text)


def test_flags_describe_the_cluster(parse):
    parse("worker", "--ps=a:1,b:2", "--chief=f:6", "--index=2")
    assert topology.from_flags("worker", fake_job()) == (topology.Topology(("a:1", "b:2"), "f:6", 3), 2)
    assert entry.prefix() == "[worker/2]"


def test_tf_config_is_used_without_flags(parse, monkeypatch):
    parse("ps")
    monkeypatch.setenv("TF_CONFIG", tf_config(("ps", 1)))
    where, index = topology.from_flags("ps")
    assert (where.ps, index) == (("a:1", "b:2"), 1)
    assert topology.listen_address("ps", where, index) == ("0.0.0.0", 2)
    assert entry.prefix() == "[ps/1]"


def test_a_shard_needs_no_cluster(parse):
    parse("ps", "--index=4", "--host=127.0.0.1")
    where, index = topology.from_flags("ps")
    assert (where.ps, index, topology.listen_address("ps", where, index)) == ((), 4, ("127.0.0.1", 0))


def test_chief_listens_on_its_flag(parse):
    parse("chief", "--ps=a:1,b:2", "--port=77", "--noevaluator")
    where, index = topology.from_flags("chief", fake_job())
    assert topology.listen_address("chief", where, index) == ("0.0.0.0", 77)
    assert not where.evaluator


@pytest.mark.parametrize(
    ("role", "arguments", "message"),
    [
        (
            "worker",
            [],
            "worker lacks --ps and --chief and --index; give them as flags or the whole cluster as TF_CONFIG",
        ),
        ("evaluator", ["--chief=f:6"], "evaluator lacks --ps;"),
        (
            "worker",
            ["--chief=f:6", "--ps=a:1,b:2", "--index=3"],
            "takes 3 workers; give 0 to 2, or .*max_workers=4",
        ),
        ("worker", ["--chief=f:6", "--ps=a:1", "--index=0"], "add --set=cluster.num_ps=1"),
        ("worker", ["--chief=f:6", "--ps=a:1,b", "--index=0"], "address 'b'"),
    ],
)
def test_half_a_cluster_is_refused(parse, role, arguments, message):
    parse(role, *arguments)
    with pytest.raises(ValueError, match=message):
        topology.from_flags(role, fake_job())


def test_tf_config_for_another_role_or_size_is_refused(parse, monkeypatch):
    parse("worker")
    monkeypatch.setenv("TF_CONFIG", tf_config(("ps", 1)))
    with pytest.raises(ValueError, match="task type 'ps', but this process is started as 'worker'"):
        topology.from_flags("worker", fake_job())
    monkeypatch.setenv("TF_CONFIG", tf_config())
    with pytest.raises(ValueError, match=r"has 3 but the job's cluster\.num_workers is 9"):
        topology.from_flags("worker", fake_job(num_workers=9))


def test_port_file_is_written(parse, tmp_path):
    parse("ps", f"--port_file={tmp_path / 'port'}")
    topology.write_port(1234)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("port", "1234\n")]


def test_run_dir_is_named_after_the_recipe(parse, tmp_path):
    parse("chief")
    assert str(topology.run_dir(fake_job())) == "runs/fake"
    parse("chief", f"--run_dir={tmp_path}")
    assert topology.run_dir(fake_job()) == tmp_path


def test_command_is_what_production_runs():
    values = {"ps": "a:1,b:2", "set": ("x=1", "y=2"), "arena": None, "chief": "", "port": 0, "evaluator": False}
    assert topology.command("worker", 3, values, python="python") == [
        *("python", "-m", "downpour.launch.worker", "--index=3", "--ps=a:1,b:2", "--set=x=1", "--set=y=2"),
        *("--port=0", "--noevaluator"),
    ]
    assert topology.command("chief", 0, {}, python="python") == ["python", "-m", "downpour.launch.chief"]


def test_a_worker_may_have_an_index_up_to_the_limit_of_the_job(parse):
    parse("worker", "--ps=a:1,b:2", "--chief=f:6", "--index=4")
    assert topology.from_flags("worker", fake_job(max_workers=5))[1] == 4
    parse("worker", "--ps=a:1,b:2", "--chief=f:6", "--index=5")
    with pytest.raises(ValueError, match=r"--index=5, but the job takes 5 workers; give 0 to 4, or .*max_workers=6"):
        topology.from_flags("worker", fake_job(max_workers=5))


def test_the_chief_that_a_shard_asks_says_nothing_of_the_cluster(parse, monkeypatch):
    parse("ps", "--index=1", "--port=5", "--chief=f:6")
    where, index = topology.from_flags("ps")
    assert (where.ps, where.chief, index) == ((), "f:6", 1)
    parse("ps", "--chief=f:6")
    monkeypatch.setenv("TF_CONFIG", tf_config(("ps", 1)))
    where, index = topology.from_flags("ps")
    assert index == 1 and where.ps == ("a:1", "b:2")
    assert topology.listen_address("ps", where, index)[1] == 2
    parse("ps", "--chief=nowhere")
    with pytest.raises(ValueError, match="address 'nowhere' is not host:port"):
        topology.from_flags("ps")


@pytest.mark.parametrize("address", ["::1:2222", "fd00::1:2222", "[::1:2222", "::1]:2222"])
def test_an_address_of_ipv6_needs_its_brackets(address: str) -> None:
    with pytest.raises(ValueError, match=r"is not host:port; an IPv6 address stands in brackets, \[::1\]:2222"):
        topology.Topology((address,), "[::1]:2223", 1)
    assert topology.Topology(("[::1]:2222",), "[::1]:2223", 1).address("ps", 0) == "[::1]:2222"
