"""Short runs of the same project: whose ./runs is, what a lost testbed leads to, the profile without the adversary."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from composition import Composition

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]


@pytest.fixture
def project(composition: Composition) -> Iterator[Composition]:
    """Without containers and without ./runs."""
    composition.forget_runs()
    try:
        yield composition
    finally:
        composition.down()


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_run_ends_with_0_and_a_readable_report_where_runs_is_owned_by(uid: int, project: Composition) -> None:
    project.runs.mkdir()
    project.chown_runs(uid)
    assert project.up(scenario="scenarios/tiny.yaml") == 0, project.log()
    owner = uid or project.folder.stat().st_uid or 1000
    report = (project.runs / "latest").resolve() / "report.json"
    for path in (project.runs, report, report.with_name("report.html")):
        assert path.stat().st_uid == owner
        assert path.stat().st_mode & 0o400
    assert json.loads(report.read_text())["clean"]["n"] == 8


def test_a_testbed_that_is_lost_is_not_a_success(project: Composition) -> None:
    assert project.up(scenario="scenarios/there-is-none.yaml") != 0, project.log()


def test_the_profile_direct_runs_without_the_adversary(project: Composition) -> None:
    assert project.up(scenario="scenarios/tiny-direct.yaml", direct=True) == 0, project.log()
    report = json.loads((project.runs / "latest" / "report.json").read_text())
    assert report["attacks"] == []
    assert report["ledger"]["rows"] == report["ledger"]["server_rows"] > 0


def test_over_mtls_the_client_is_answered_and_the_adversary_is_not(project: Composition) -> None:
    assert project.up(scenario="scenarios/tiny-tls.yaml", over="docker/tls.yml") == 0, project.log()
    report = json.loads((project.runs / "latest" / "report.json").read_text())
    assert report["clean"]["n"] == 8
    assert report["ledger"]["agrees"], report["ledger"]["disagreements"]
    probes = report["security"]["probes"]
    assert [probe["way"] for probe in probes] == ["query", "query in clear text", "query with own certificate"]
    assert all(probe["answered"] == 0 and probe["refused"] == {"UNAVAILABLE": 2} for probe in probes)
