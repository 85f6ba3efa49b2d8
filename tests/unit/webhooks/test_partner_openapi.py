"""schemathesis against the partner API's own OpenAPI document: whatever is sent, no answer is ours to be ashamed of,
each is as the document says, and what the document forbids is refused."""

import io
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import (
    negative_data_rejection,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi.checks import content_type_conformance
from sqlalchemy.exc import SQLAlchemyError

from ledger.connection import Ledger
from ledger.inbound import Door
from orders.outcomes import Planned
from webhooks.partner import blueprint
from webhooks.partner_access import Meters, Shop, User

PAYLOADS = Path(__file__).resolve().parents[2] / "payloads" / "partner"
TOKEN = {"token": "fixed-token"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
SHOP = Shop(
    account="default",
    tokens={"fixed-token": "acme"},
    users=[User("ann", "secret", "acme")],
    stores={"st-1": "Store One"},
    items={501: "Wardrobe", 502: "Bed"},
    zone=ZoneInfo("Asia/Nicosia"),
    plan=(Planned("erp.order"),),
)


@pytest.fixture(scope="module")
def app(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """The door, before a ledger."""
    path = tmp_path_factory.mktemp("openapi") / "ledger.db"
    shutil.copy(migrated_sqlite, path)
    ledger = Ledger(f"sqlite:///{path}")
    made = Flask("test", static_folder=None)
    made.register_blueprint(
        blueprint([SHOP], Door(ledger, "partner"), lambda ids: None, away=SQLAlchemyError, meters=Meters(1e6))
    )
    yield made
    ledger.close()


@pytest.fixture(scope="module")
def document(app: Flask) -> Any:
    """What the application says of itself."""
    generation = GenerationConfig(with_security_parameters=False)  # each request has the token
    config = SchemathesisConfig(projects=ProjectsConfig(default=ProjectConfig(generation=generation)))
    return schemathesis.openapi.from_wsgi("/docs/openapi.json", app, config=config)


OPERATIONS = [
    ("POST", "/partner/auth/authorize"),
    ("POST", "/partner/image/upload"),
    ("GET", "/partner/image/{image_id}"),
    ("GET", "/partner/item/list"),
    ("GET", "/partner/item/find"),
    ("GET", "/partner/masters/slots"),
    ("POST", "/partner/order/create"),
    ("GET", "/partner/order/list"),
    ("GET", "/partner/order/{number}"),
]
# The same requests in every run. (schemathesis's own `parametrize` for fixtures sets what pytest 9.2 no longer has.)
SETTINGS = settings(
    derandomize=True, database=None, deadline=None, max_examples=20, suppress_health_check=list(HealthCheck)
)
MODES = list(GenerationMode)


def test_every_operation_is_asked(document: Any) -> None:
    found = [result.ok() for result in document.get_all_operations()]
    assert [(operation.method.upper(), operation.path) for operation in found] == OPERATIONS


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_whatever_is_asked(document: Any, method: str, path: str, mode: GenerationMode) -> None:
    @SETTINGS
    @given(document[path][method].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=TOKEN, checks=CHECKS)

    ask()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_limit_of_the_document(document: Any, method: str, path: str) -> None:
    for case in document.iter_coverage_cases(
        document[path][method],
        generation_modes=MODES,
        generation_config=GenerationConfig(with_security_parameters=False),
    ):
        case.call_and_validate(headers=TOKEN, checks=CHECKS)


def test_good_answers_are_as_the_document_says(app: Flask, document: Any) -> None:
    client = app.test_client()
    upload = {"file": (io.BytesIO(b"\x89PNG\r\n\x1a\n"), "r.png")}
    (image,) = client.post("/partner/image/upload", headers=TOKEN, data=upload).get_json()["data"]
    order = json.loads((PAYLOADS / "order.json").read_text()) | {"image_uuids": [image["id"]]}
    order["datetime"] = {"date": f"{datetime.now(UTC).date() + timedelta(days=2)}", "timeslot": "0712"}
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("/partner/auth/authorize", "POST", {"body": {"login": "ann", "password": "secret"}}),
        ("/partner/item/list", "GET", {}),
        ("/partner/item/find", "GET", {"query": {"name": "wardrobe"}}),
        ("/partner/masters/slots", "GET", {"query": {"store_id": "st-1"}}),
        ("/partner/order/create", "POST", {"body": order}),
        ("/partner/order/list", "GET", {}),
        ("/partner/order/{number}", "GET", {"path_parameters": {"number": 0}}),
        ("/partner/image/{image_id}", "GET", {"path_parameters": {"image_id": image["id"]}}),
    ]
    for path, method, values in asked:
        body = {"media_type": "application/json"} if "body" in values else {}
        case = document[path][method].Case(**values, **body)
        answer = case.call_and_validate(headers=TOKEN, checks=CHECKS)
        assert answer.status_code == 200, (path, answer.text)
