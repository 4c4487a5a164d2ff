"""The instrument itself, with pods that are shell scripts."""

from __future__ import annotations

from typing import Any

import pytest

from downpour.launch.roles.topology import from_tf_config
from tests.kubelet import indexed_job
from tests.kubelet.cluster import Cluster
from tests.kubelet.fields import check_pod, environment, expand
from tests.kubelet.tfjob import tf_config

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("hosts")]

DEADLINE_S = 60.0


def template(script: str, *, restart: str = "Never", grace_s: int = 5) -> dict[str, Any]:
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return {
        "metadata": {"labels": {"app": "a"}},
        "spec": {
            "restartPolicy": restart,
            "subdomain": "all",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace_s,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532},
            "containers": [
                {
                    "name": "main",
                    "image": "an/image:1",
                    "command": ["sh", "-c", script],
                    "env": [{"name": "GREETING", "value": "hello"}],
                    "resources": {"limits": {"memory": "64Mi"}},
                    "securityContext": security,
                    "volumeMounts": [
                        {"name": "kept", "mountPath": "/var/kept"},
                        {"name": "told", "mountPath": "/etc/told", "readOnly": True},
                    ],
                }
            ],
            "volumes": [
                {"name": "kept", "emptyDir": {"sizeLimit": "1Mi"}},
                {"name": "told", "secret": {"secretName": "told", "defaultMode": 0o440}},
            ],
        },
    }


def start(kubernetes: Cluster, pod: dict[str, Any], completions: int = 1, **more: Any) -> None:
    meta = {"labels": {}}
    spec = {
        "completionMode": "Indexed",
        "completions": completions,
        "parallelism": completions,
        "podReplacementPolicy": "Failed",
        "backoffLimit": 6,
        **more,
        "template": pod,
    }
    service = {"clusterIP": "None", "selector": {"app": "a"}, "publishNotReadyAddresses": True, "ports": []}
    kubernetes.apply(
        [
            {"kind": "Secret", "metadata": {**meta, "name": "told"}, "data": {"word": "c2VjcmV0"}},
            {"kind": "Service", "metadata": {**meta, "name": "all"}, "spec": service},
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": {**meta, "name": "j"}, "spec": spec},
        ]
    )


SCRIPT = """
    echo user $(id -u) $(id -G) $(hostname) $GREETING $JOB_COMPLETION_INDEX; echo secret $(cat /etc/told/word)
    for path in /a /usr/a /etc/told/a /var/a; do touch $path 2>/dev/null && echo written $path; done
    touch /var/kept/a && echo kept; head -c 2000000 /dev/zero 2>/dev/null > /var/kept/b || echo full
    echo $(grep -E 'Cap(Bnd|Eff)|NoNewPrivs' /proc/self/status)
    echo names $(getent hosts $(hostname).all)
    echo variables $(env | cut -d= -f1 | sort)
"""


def test_a_container_has_what_its_manifest_says_and_no_more(kubernetes: Cluster) -> None:
    start(kubernetes, template(SCRIPT), completions=2)
    kubernetes.wait(kubernetes.all_complete, "its end", DEADLINE_S)
    for index, log in enumerate(kubernetes.logs("j").values()):
        user, secret, kept, full, rights, hosts, variables = log.splitlines()
        assert user == f"user 65532 65532 j-{index} hello {index}"
        assert (secret, kept, full) == ("secret secret", "kept", "full")
        assert rights.split() == ["CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1"]
        assert hosts.split()[2:] == [
            f"j-{index}.all{end}" for end in ("", ".default", ".default.svc", ".default.svc.cluster.local")
        ]
        assert (
            variables == "variables GREETING JOB_COMPLETION_INDEX NUMBA_CPU_FEATURES NUMBA_CPU_NAME PATH PWD PYTHONPATH"
        )


def test_restarts_keep_an_empty_dir_and_new_pods_do_not(kubernetes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed_job, "BACK_OFF_S", 0.1)
    script = 'echo started >> /var/kept/log; wc -l < /var/kept/log; trap "exit 143" TERM; while :; do sleep 0.05; done'
    start(kubernetes, template(script, restart="OnFailure"))
    pods = kubernetes.pods

    def lines(pod: str) -> str:
        return pods[pod].log.read_text() if pod in pods and pods[pod].log.exists() else ""

    kubernetes.wait(lambda: lines("j-0") == "1\n", "its start", DEADLINE_S)
    address = pods["j-0"].address
    pods["j-0"].kill()
    kubernetes.wait(lambda: pods["j-0"].restarts == 1 and lines("j-0") == "2\n", "its restart", DEADLINE_S)
    assert pods["j-0"].exit_code == 137
    first = pods["j-0"]
    first.delete()
    kubernetes.wait(lambda: pods.get("j-0") not in (None, first) and lines("j-0") == "1\n", "a new pod", DEADLINE_S)
    assert first.exit_code == 143
    assert pods["j-0"].address != address


WHY = """
    case $JOB_COMPLETION_INDEX in
        0) echo nothing; printf why > /dev/termination-log; exit 3;;
        1) echo one; echo last; exit 4;;
        2) echo nothing; exit 0;;
    esac
"""


def test_why_a_container_has_ended_is_in_its_file_or_its_log(kubernetes: Cluster) -> None:
    pod = template(WHY)
    pod["spec"]["containers"][0]["terminationMessagePolicy"] = "FallbackToLogsOnError"
    start(kubernetes, pod, completions=3, backoffLimit=6)

    def ended() -> set[str]:
        return {text for _, text in kubernetes.events if "container ended" in text}

    said = {
        "j-0: container ended with 3: why",
        "j-1: container ended with 4: one\nlast\n",
        "j-2: container ended with 0",
    }
    kubernetes.wait(lambda: said <= ended(), "their ends", DEADLINE_S)


def test_what_is_not_played_is_refused() -> None:
    pod = template("true")["spec"]
    check_pod(pod)
    pod["containers"][0]["lifecycle"] = {}
    with pytest.raises(AssertionError, match="lifecycle"):
        check_pod(pod)


def test_variables_are_put_into_arguments() -> None:
    assert expand("a$(B)-$(C)-$$(B)", {"B": "x"}) == "ax-$(C)-$(B)"
    assert environment({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}]})["B"] == "12"


def test_tf_config_is_what_kubeflow_sets() -> None:
    container = {"name": "tensorflow", "ports": [{"name": "tfjob-port", "containerPort": 2222}]}
    replica = {"replicas": 1, "template": {"spec": {"containers": [container]}}}
    replicas = {"PS": replica | {"replicas": 2}, "Worker": replica, "Chief": replica, "Evaluator": replica}
    where, role, index = from_tf_config(tf_config("job", "team", replicas, "PS", 1))
    assert where.ps == ("job-ps-0.team.svc:2222", "job-ps-1.team.svc:2222")
    assert (where.chief, where.num_workers, where.evaluator) == ("job-chief-0.team.svc:2222", 1, False)
    assert (role, index) == ("ps", 1)
    assert from_tf_config(tf_config("job", "team", replicas, "Evaluator", 0))[1] == "evaluator"
