"""Every alert fires for the series that its fault makes, and none for those of a healthy job, by promtool."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from downpour.launch import monitoring
from downpour.launch.observe.metrics.alerts import ALERTS
from tests.launch.observe.prometheus import needs_promtool, promtool

pytestmark = [pytest.mark.process, needs_promtool]

AT = 100  # minutes: after every window and every delay
CHIEF = 'run="mine",role="chief",index="0"'
SHARD = 'run="mine",role="ps",index="1",shard="1"'


def worker(index: int, more: str = "") -> str:
    return f'{CHIEF},worker="{index}"{more}'


def state(value: str) -> str:
    return f',state="{value}"'


# Of a job of three workers and a shard, minute by minute.
HEALTHY = {
    f"up{{{CHIEF}}}": "1x120",
    f'downpour_job_state{{{CHIEF},state="training"}}': "1x120",
    f'downpour_job_state{{{CHIEF},state="failed"}}': "0x120",
    f'downpour_job_shard_state{{{CHIEF},shard="1",state="ready"}}': "1x120",
    f'downpour_job_faults_total{{{CHIEF},kind="updates_lost"}}': "0x120",
    f"downpour_job_staleness_mean{{{CHIEF}}}": "2x120",
    f"downpour_job_step{{{CHIEF}}}": "0+600x120",
    f"downpour_job_checkpoint_step{{{CHIEF}}}": "0+600x120",
    f"downpour_job_checkpoint_every_steps{{{CHIEF}}}": "1000x120",
    f'downpour_disk_free_bytes{{{CHIEF},folder="run"}}': "600000-10x120",
    f'downpour_disk_size_bytes{{{CHIEF},folder="run"}}': "1000000x120",
    f"downpour_shard_pushes_refused_total{{{SHARD}}}": "0x120",
    f'downpour_server_calls_refused_total{{{SHARD},reason="token"}}': "0x120",
    f'downpour_server_connections_ended_total{{{SHARD},reason="malformed"}}': "0x120",
    **{f"downpour_job_worker_steps_total{{{worker(i)}}}": "0+200x120" for i in range(3)},
    **{f"downpour_job_worker_state{{{worker(i, state('running'))}}}": "1x120" for i in range(3)},
    **{f"downpour_job_worker_state{{{worker(i, state('lost'))}}}": "0x120" for i in range(3)},
}

# What differs when the fault is there.
FAULTS = {
    "DownpourChiefDown": {f"up{{{CHIEF}}}": "1x90 0x30"},
    "DownpourShardDown": {f'downpour_job_shard_state{{{CHIEF},shard="1",state="ready"}}': "1x90 0x30"},
    "DownpourJobFailed": {
        f'downpour_job_state{{{CHIEF},state="training"}}': "1x90 0x30",
        f'downpour_job_state{{{CHIEF},state="failed"}}': "0x90 1x30",
    },
    "DownpourUpdatesLost": {f'downpour_job_faults_total{{{CHIEF},kind="updates_lost"}}': "0x95 120x30"},
    "DownpourStalenessGrows": {f"downpour_job_staleness_mean{{{CHIEF}}}": "2x80 9x40"},
    "DownpourWorkerLost": {
        f"downpour_job_worker_state{{{worker(2, state('running'))}}}": "1x90 0x30",
        f"downpour_job_worker_state{{{worker(2, state('lost'))}}}": "0x90 1x30",
    },
    "DownpourWorkerStuck": {f"downpour_job_worker_steps_total{{{worker(2)}}}": "0+200x80 16000x40"},
    "DownpourWorkerSlow": {f"downpour_job_worker_steps_total{{{worker(2)}}}": "0+40x120"},
    "DownpourCheckpointTooOld": {f"downpour_job_checkpoint_step{{{CHIEF}}}": "0+600x80 48000x40"},
    "DownpourDiskFilling": {f'downpour_disk_free_bytes{{{CHIEF},folder="run"}}': "400000-2500x120"},
    "DownpourPushesRefused": {f"downpour_shard_pushes_refused_total{{{SHARD}}}": "0x95 3x30"},
    "DownpourStrangers": {f'downpour_server_calls_refused_total{{{SHARD},reason="token"}}': "0x95 3x30"},
}


def one_test(name: str, series: dict[str, str], *alerts: str) -> dict[str, object]:
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts]
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [{"expr": firing, "eval_time": f"{AT}m", "exp_samples": expected}],
    }


def test_each_alert_fires_for_its_fault_alone(tmp_path: Path) -> None:
    monitoring.run(monitoring.MonitoringConfig(tmp_path, ()))
    assert set(FAULTS) == {alert.name for alert in ALERTS}
    tests = [one_test("healthy", HEALTHY)]
    tests += [one_test(name, HEALTHY | changed, name) for name, changed in FAULTS.items()]
    assert all(set(changed) <= set(HEALTHY) for changed in FAULTS.values())
    strangers = {f'downpour_server_connections_ended_total{{{SHARD},reason="malformed"}}': "0x95 50x30"}
    tests.append(one_test("a scan", HEALTHY | strangers, "DownpourStrangers"))
    never = {key: values for key, values in HEALTHY.items() if "checkpoint_step" not in key}
    tests.append(one_test("no checkpoint at all", never, "DownpourCheckpointTooOld"))
    full = {f'downpour_disk_free_bytes{{{CHIEF},folder="run"}}': "40000x120"}
    tests.append(one_test("a full disk", HEALTHY | full, "DownpourDiskFilling"))
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_are_valid(tmp_path: Path) -> None:
    monitoring.run(monitoring.MonitoringConfig(tmp_path, (tmp_path / "metrics_targets.json",)))
    for what in ("config", "rules"):
        file = tmp_path / ("prometheus.yml" if what == "config" else "alerts.yml")
        done = promtool("check", what, file)
        assert done.returncode == 0, done.stdout + done.stderr
