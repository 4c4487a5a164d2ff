"""What the flags of a role, and TF_CONFIG, mean."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from absl import flags

from downpour.launch.job import Cluster
from downpour.launch.roles import entry, role_flags, topology
from downpour.launch.roles.config import Checkpoints, Listening

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
        role_flags.define(role)
        flags.FLAGS(["program", *arguments])

    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(entry, "_role", "downpour")
    return read


def test_flags_describe_the_cluster(parse):
    parse("worker", "--ps=a:1,b:2", "--chief=f:6", "--index=2")
    assert role_flags.cluster("worker", fake_job()) == (topology.Topology(("a:1", "b:2"), "f:6", 3), 2)
    assert entry.prefix() == "[worker/2]"


def test_tf_config_is_used_without_flags(parse, monkeypatch):
    parse("ps")
    monkeypatch.setenv("TF_CONFIG", tf_config(("ps", 1)))
    where, index = role_flags.cluster("ps")
    assert (where.ps, index) == (("a:1", "b:2"), 1)
    assert role_flags.listening("ps", where, index) == Listening("0.0.0.0", 2)
    assert entry.prefix() == "[ps/1]"


def test_a_shard_needs_no_cluster(parse):
    parse("ps", "--index=4", "--host=127.0.0.1")
    where, index = role_flags.cluster("ps")
    assert (where.ps, index, role_flags.listening("ps", where, index)) == ((), 4, Listening("127.0.0.1"))


def test_chief_listens_on_its_flag(parse):
    parse("chief", "--ps=a:1,b:2", "--port=77", "--noevaluator")
    where, index = role_flags.cluster("chief", fake_job())
    assert role_flags.listening("chief", where, index) == Listening("0.0.0.0", 77)
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
        role_flags.cluster(role, fake_job())


def test_tf_config_for_another_role_or_size_is_refused(parse, monkeypatch):
    parse("worker")
    monkeypatch.setenv("TF_CONFIG", tf_config(("ps", 1)))
    with pytest.raises(ValueError, match="task type 'ps', but this process is started as 'worker'"):
        role_flags.cluster("worker", fake_job())
    monkeypatch.setenv("TF_CONFIG", tf_config())
    with pytest.raises(ValueError, match=r"has 3 but the job's cluster\.num_workers is 9"):
        role_flags.cluster("worker", fake_job(num_workers=9))


def test_port_file_is_written(parse, tmp_path):
    parse("ps", f"--port_file={tmp_path / 'port'}")
    where, index = role_flags.cluster("ps")
    topology.write_port(role_flags.listening("ps", where, index).port_file, 1234)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("port", "1234\n")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), Checkpoints()),
        (("--resume",), Checkpoints(resume="yes")),
        (("--resume_if_any", "--checkpoint_dir=s3://a/b"), Checkpoints("s3://a/b", "if_any")),
        (("--overwrite",), Checkpoints(overwrite=True)),
    ],
)
def test_checkpoints_are_passed_on_as_they_were_given(parse, arguments, expected):
    parse("chief", *arguments)
    found = role_flags.checkpoints()
    assert found == expected
    parse("chief", *topology.flag_arguments(found.flags()))
    assert role_flags.checkpoints() == expected


def test_resume_and_overwrite_contradict_each_other(parse):
    parse("chief", "--resume_if_any", "--overwrite")
    with pytest.raises(ValueError, match="--overwrite removes the run that --resume continues"):
        role_flags.checkpoints()


@pytest.mark.parametrize("text", ["a b", "x" * 65])
def test_a_job_id_with_other_characters_or_too_long_is_refused(parse, text):
    parse("chief", f"--job_id={text}")
    with pytest.raises(ValueError, match="give up to 64 letters, digits"):
        role_flags.job_id()


def test_run_dir_is_named_after_the_recipe(parse, tmp_path):
    parse("chief")
    assert str(role_flags.run_dir(fake_job())) == "runs/fake"
    parse("chief", f"--run_dir={tmp_path}")
    assert role_flags.run_dir(fake_job()) == tmp_path


def test_a_worker_may_have_an_index_up_to_the_limit_of_the_job(parse):
    parse("worker", "--ps=a:1,b:2", "--chief=f:6", "--index=4")
    assert role_flags.cluster("worker", fake_job(max_workers=5))[1] == 4
    parse("worker", "--ps=a:1,b:2", "--chief=f:6", "--index=5")
    with pytest.raises(ValueError, match=r"--index=5, but the job takes 5 workers; give 0 to 4, or .*max_workers=6"):
        role_flags.cluster("worker", fake_job(max_workers=5))


def test_the_chief_that_a_shard_asks_says_nothing_of_the_cluster(parse, monkeypatch):
    parse("ps", "--index=1", "--port=5", "--chief=f:6")
    where, index = role_flags.cluster("ps")
    assert (where.ps, where.chief, index) == ((), "f:6", 1)
    parse("ps", "--chief=f:6")
    monkeypatch.setenv("TF_CONFIG", tf_config(("ps", 1)))
    where, index = role_flags.cluster("ps")
    assert index == 1 and where.ps == ("a:1", "b:2")
    assert role_flags.listening("ps", where, index).port == 2
    parse("ps", "--chief=nowhere")
    with pytest.raises(ValueError, match="address 'nowhere' is not host:port"):
        role_flags.cluster("ps")
