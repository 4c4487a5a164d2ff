"""Writes what Prometheus and Grafana need to watch jobs: scrape configuration, alert rules, dashboard.

    downpour monitoring --targets=runs/mine/metrics_targets.json
    prometheus --config.file=monitoring/prometheus.yml

`grafana.json` is imported in Grafana (Dashboards, Import). A job on Kubernetes has its own files, which
`downpour kubernetes` writes into the folder `monitoring`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from downpour.files import replacing
from downpour.launch.kubernetes.text import render
from downpour.launch.observe.metrics import alerts, dashboard
from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax

SYNTAX = Syntax(shown="out targets")
RULES, SCRAPES, DASHBOARD = "alerts.yml", "prometheus.yml", "grafana.json"
_EVERY_S = 5
_TARGETS = re.compile(r"[^*]*(\*[^/*]*)?\.(json|yml|yaml)")


@dataclass(frozen=True)
class MonitoringConfig:
    """What to write, and where.

    Attributes:
        out: Folder.
        targets: Files with targets that Prometheus watches.
    """

    out: Path
    targets: tuple[Path, ...]


def main() -> None:
    """Writes the files."""
    define()
    entry.run(lambda: run(from_flags()), role="monitoring", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_string("out", "monitoring", "Folder to write to.")
    text = (
        "Files with commas that list whom to scrape; `downpour train --metrics_port` writes one into its run's folder."
    )
    flags.DEFINE_list("targets", [], text)


def from_flags() -> MonitoringConfig:
    """Returns the configuration of the command line.

    Raises:
        ValueError: Prometheus takes no such name of a file with targets.
    """
    targets = tuple(Path(name).absolute() for name in flags.FLAGS.targets)
    for path in targets:
        if not _TARGETS.fullmatch(str(path)):
            raise ValueError(
                f"--targets={path}: Prometheus takes files that end with .json or .yml, with at most one '*', in the "
                "last part; give such as runs/mine/metrics_targets.json"
            )
    return MonitoringConfig(Path(flags.FLAGS.out), targets)


def run(config: MonitoringConfig) -> None:
    """Writes the files; those that are there are replaced.

    Raises:
        ValueError: The folder cannot be written.
    """
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        for name, text in files(config).items():
            with replacing(config.out / name) as temporary:
                temporary.write_text(text)
    except OSError as error:
        raise ValueError(f"--out={config.out} cannot be written ({error.strerror}); give another") from None
    print(f"{config.out}: {SCRAPES}, {RULES} and {DASHBOARD}; next: prometheus --config.file={config.out / SCRAPES}")


def files(config: MonitoringConfig) -> dict[str, str]:
    """Returns the text of every file by its name."""
    sources = (
        [{"files": [str(path) for path in config.targets], "refresh_interval": f"{_EVERY_S}s"}]
        if config.targets
        else []
    )
    scrapes = {
        "global": {"scrape_interval": f"{_EVERY_S}s", "evaluation_interval": f"{_EVERY_S}s"},
        "rule_files": [RULES],
        "scrape_configs": [{"job_name": "downpour", "file_sd_configs": sources}],
    }
    head = "Written by `downpour monitoring`."
    return {
        SCRAPES: render([scrapes], head),
        RULES: render([alerts.groups()], head),
        DASHBOARD: dashboard.text(),
    }
