"""The metrics, alert rules and dashboard work with a real Prometheus."""

import re
import shutil
import subprocess
from pathlib import Path

import aiohttp
import msgspec
import pytest

from tests.support.documents import ROOT, rows, section
from tests.support.live_service import live_service
from tests.support.prometheus import needs_prometheus, prometheus, promtool

DEPLOY = ROOT / "docs" / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "kasparro.json"
RULE_TESTS = Path(__file__).parent / "alerts.test.yml"

VARIABLES = {"$__rate_interval": "30s", "$job": "kasparro", "$instance": ".*"}


def expressions() -> list[str]:
    """The queries of all panels of the dashboard, and of its annotations."""
    dashboard = msgspec.json.decode(DASHBOARD.read_bytes())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())] + [
        annotation["expr"] for annotation in dashboard["annotations"]["list"]
    ]


def metric_names(text: str) -> set[str]:
    """The metrics of this service that a text names, without the suffixes of histograms and summaries."""
    found = set(re.findall(r"\bkasparro_[a-z0-9_]+", text))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def documented() -> set[str]:
    """The metrics that docs/operations.md lists."""
    return {name for row in rows(section("docs/operations.md", "Metrics")) for name in metric_names(row[0])}


@needs_prometheus
async def test_rules_and_configuration_are_valid() -> None:
    for arguments in (("rules", str(RULES)), ("config", str(DEPLOY / "prometheus" / "prometheus.yml"))):
        code, output = await promtool("check", *arguments)
        assert code == 0, output


@pytest.mark.skipif(
    shutil.which("amtool") is None,
    reason="Alertmanager (Debian: prometheus-alertmanager) is not installed",
)
@pytest.mark.parametrize(("severity", "receiver"), [("critical", "on-call"), ("warning", "mail")])
def test_alerts_go_to_the_receiver_of_their_severity(severity: str, receiver: str) -> None:
    assert f"severity: {severity}" in RULES.read_text()
    config = f"--config.file={DEPLOY / 'prometheus' / 'alertmanager.yml'}"
    done = subprocess.run(
        ["amtool", "config", "routes", "test", config, f"severity={severity}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, receiver), done.stderr


@needs_prometheus
@pytest.mark.slow
async def test_each_problem_causes_its_alert() -> None:
    code, output = await promtool("test", "rules", str(RULE_TESTS))
    assert code == 0, output


def test_each_alert_has_a_test() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    tested = set(re.findall(r'labels: .*alertname="(\w+)"', RULE_TESTS.read_text()))
    assert alerts == tested


def test_alerts_and_dashboard_use_documented_metrics() -> None:
    for text in (RULES.read_text(), *expressions()):
        assert metric_names(text) <= documented()


@needs_prometheus
@pytest.mark.slow
async def test_real_prometheus_scrapes_two_workers(database_url: str, tmp_path: Path) -> None:
    async with live_service(database_url, "--workers", "2") as service:
        async with aiohttp.ClientSession(service.url) as client:
            for path in ("/data", "/data", "/assets", "/nosuch") * 5:
                async with client.get(path) as response:
                    await response.read()
            async with client.get("/metrics") as response:
                text = await response.text()
        async with prometheus(tmp_path, service.url.removeprefix("http://"), RULES) as server:
            await server.scraped(3)
            empty = []
            for expression in expressions():
                query = expression
                for variable, value in VARIABLES.items():
                    query = query.replace(variable, value)
                if not await server.query(query):
                    empty.append(expression)
            firing = await server.query('ALERTS{alertstate="firing"}')

    code, output = await promtool("check", "metrics", stdin=text)
    assert (code, output) == (0, "")
    # No alert fires, nothing failed, no worker ended, and reads use no replica.
    assert sorted(metric_names("\n".join(empty))) == [
        "kasparro_replica_lag_seconds",
        "kasparro_worker_exits_total",
    ]
    assert len(empty) == 3
    assert firing == []
