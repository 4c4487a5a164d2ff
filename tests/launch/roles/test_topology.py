from __future__ import annotations

import json

import pytest

from downpour.launch.roles import topology

CLUSTER = {"ps": ["a:1", "b:2"], "worker": ["c:3", "d:4", "e:5"], "chief": ["f:6"]}


def tf_config(task=("worker", 1), **changes):
    cluster = {key: value for key, value in (CLUSTER | changes).items() if value is not None}
    return json.dumps({"cluster": cluster, "task": {"type": task[0], "index": task[1]}, "environment": "cloud"})


def test_tf_config_of_a_tfjob():
    where, role, index = topology.from_tf_config(tf_config())
    assert where == topology.Topology(("a:1", "b:2"), "f:6", num_workers=3, evaluator=False)
    assert (role, index) == ("worker", 1)


def test_master_is_a_chief_and_the_evaluator_needs_no_place_in_the_cluster():
    where, role, _ = topology.from_tf_config(tf_config(("master", 0), chief=None, master=["m:1"]))
    assert (where.chief, role) == ("m:1", "chief")
    where, role, _ = topology.from_tf_config(tf_config(("evaluator", 0)))
    assert (where.evaluator, role) == (True, "evaluator")
    assert topology.from_tf_config(tf_config(("evaluator", 1)))[1:] == ("evaluator", 1), "one of several"


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


def test_command_is_what_production_runs():
    values = {"ps": "a:1,b:2", "set": ("x=1", "y=2"), "arena": None, "chief": "", "port": 0, "evaluator": False}
    assert topology.command("worker", 3, values, python="python") == [
        *("python", "-m", "downpour.launch.worker", "--index=3", "--ps=a:1,b:2", "--set=x=1", "--set=y=2"),
        *("--port=0", "--noevaluator"),
    ]
    assert topology.command("chief", 0, {}, python="python") == ["python", "-m", "downpour.launch.chief"]


@pytest.mark.parametrize("address", ["::1:2222", "fd00::1:2222", "[::1:2222", "::1]:2222"])
def test_an_address_of_ipv6_needs_its_brackets(address: str) -> None:
    with pytest.raises(ValueError, match=r"is not host:port; an IPv6 address stands in brackets, \[::1\]:2222"):
        topology.Topology((address,), "[::1]:2223", 1)
    assert topology.Topology(("[::1]:2222",), "[::1]:2223", 1).address("ps", 0) == "[::1]:2222"
