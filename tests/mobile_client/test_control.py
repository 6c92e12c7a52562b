"""The control API under schemathesis: whatever is posted, the phone neither crashes nor answers with a 5xx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance


def test_no_request_makes_a_server_error(digits_artefact: Path, tmp_path: Path, start_process: Any) -> None:
    arguments = ["--artefact", str(digits_artefact), "--target", "127.0.0.1:9", "--patience-s", "0"]
    phone = start_process("mobile_client", tmp_path / "phone", *arguments)
    token = (tmp_path / "phone" / "token").read_text().strip()
    schema = schemathesis.openapi.from_url(f"{phone.url}/openapi.json")
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/exit":
            continue  # it would do what it is told

        @settings(
            max_examples=12,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        )
        @given(case=operation.as_strategy())
        def fuzz(case: Any) -> None:
            nonlocal tried
            tried += 1
            checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
            case.call_and_validate(checks=checks, headers={"Authorization": f"Bearer {token}"})

        fuzz()
    assert tried > 40
    assert httpx.get(f"{phone.url}/healthz", trust_env=False).json() == {"status": "ok"}
    assert phone.end() == 0


def test_bodies_that_are_no_request_are_refused_in_words(digits_artefact: Path, tmp_path: Path, start_process: Any) -> None:
    phone = start_process("mobile_client", tmp_path / "phone", "--artefact", str(digits_artefact), "--target", "127.0.0.1:9")
    bodies = [
        b'{"run": "\\ud800", "count": 1}',
        b'{"run": "r", "count": 1, "\\udfff": 1}',
        b'{"run": "r", "count": 1, "source": {"kind": "\\ud800"}}',
        b'{"run": "r", "count": NaN}',
        b'{"run": "r", "count": 1e999}',
        b"[" * 5000,
        b"\xff",
        b"",
    ]
    with phone.http() as client:
        for body in bodies:
            response = client.post("/passes", content=body, headers={"Content-Type": "application/json"})
            assert response.status_code in (400, 422), body
            assert response.json()["detail"]
