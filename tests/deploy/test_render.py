"""render.yaml has only fields and values that Render documents, and settings that Kasparro has.

The fields are those of https://render.com/docs/blueprint-spec that the blueprint uses. CI also compares the
file with Render's own schema.
"""

import ipaddress
from typing import Any

import msgspec
import pytest

from kasparro.sources import registry
from kasparro.web.routes import health
from tests.support.documents import ROOT, read

PLANS = {"free", "starter", "standard", "pro", "pro plus", "pro max", "pro ultra"}
DATABASE_PLANS = {"free", "basic-256mb", "basic-1gb", "basic-4gb", "pro-4gb", "pro-8gb", "pro-16gb"}
PROPERTIES = {"host", "port", "connectionString", "user", "password", "database"}


class FromDatabase(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    name: str
    property: str


class Variable(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """An environment variable: it has exactly one of the fields after `key`."""

    key: str
    value: str | int | None = None
    generate_value: bool | None = None
    sync: bool | None = None
    from_database: FromDatabase | None = None


class Service(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    type: str
    name: str
    runtime: str
    dockerfile_path: str
    docker_context: str
    plan: str
    health_check_path: str
    max_shutdown_delay_seconds: int
    env_vars: list[Variable]


class Database(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    name: str
    database_name: str
    user: str
    plan: str
    # A string: Render rejects a number.
    postgres_major_version: str
    ip_allow_list: list[dict[str, str]]


class Blueprint(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    services: list[Service]
    databases: list[Database]


@pytest.fixture(scope="module")
def blueprint() -> Blueprint:
    return msgspec.yaml.decode(read("render.yaml"), type=Blueprint)


def test_service_has_documented_values(blueprint: Blueprint) -> None:
    (service,) = blueprint.services
    assert (service.type, service.runtime) == ("web", "docker")
    assert service.plan in PLANS
    assert 1 <= service.max_shutdown_delay_seconds <= 300
    assert (ROOT / service.docker_context / service.dockerfile_path).is_file()
    assert service.health_check_path in {endpoint.path for endpoint in health.ENDPOINTS}


def test_each_variable_is_a_setting_with_one_value(blueprint: Blueprint) -> None:
    variables = blueprint.services[0].env_vars
    keys = [variable.key for variable in variables]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= {variable.name for variable in registry.variables()}
    for variable in variables:
        given = [value for value in msgspec.structs.astuple(variable)[1:] if value is not None]
        assert len(given) == 1, variable.key
        # Render asks for the value of a variable with `sync: false`, and has no `sync: true`.
        assert variable.sync is not True
        assert variable.generate_value is not False


def test_service_uses_the_database_of_the_blueprint(blueprint: Blueprint) -> None:
    (database,) = blueprint.databases
    assert database.plan in DATABASE_PLANS
    assert int(database.postgres_major_version) >= 15
    # Only Render's private network reaches it.
    assert database.ip_allow_list == []
    (reference,) = [v.from_database for v in blueprint.services[0].env_vars if v.from_database is not None]
    assert reference.name == database.name
    assert reference.property in PROPERTIES


def test_service_starts_with_the_variables_of_the_blueprint(blueprint: Blueprint) -> None:
    values: dict[str, Any] = {"PORT": "10000"}
    for variable in blueprint.services[0].env_vars:
        if variable.value is not None:
            values[variable.key] = str(variable.value)
        elif variable.generate_value:
            # 256 random bits in base64.
            values[variable.key] = "B0jrphAPOY7pg92AN0c9MN4yecczLMdwnx4OkA1K+/s="
        elif variable.from_database is not None:
            values[variable.key] = "postgresql://kasparro:secret@dpg-abc-a/kasparro"
    settings = registry.load_settings(values)
    assert settings.host == "0.0.0.0"
    for network in settings.trusted_proxies:
        ipaddress.ip_network(network)
