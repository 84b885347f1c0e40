# Needs just (`.venv/bin/just` after `.ci/setup tests`) and, for the stack, docker or podman.

compose := "$(docker compose version >/dev/null 2>&1 && echo docker compose || echo podman compose)"

_list:
    @{{quote(just_executable())}} --list --unsorted

# Build and start the local stack, and wait until it is ready
up:
    {{compose}} build || echo "could not build: starting the image that is here" >&2
    {{compose}} up --detach --wait

# Stop the local stack; its data stays
down:
    {{compose}} down

# One run: in the stack if it is up, otherwise here with the embedded database
etl *args:
    @if {{compose}} exec -T kasparro true >/dev/null 2>&1; then {{compose}} exec $([ -t 0 ] && [ -t 1 ] || echo -T) kasparro kasparro etl {{args}}; else {{quote(just_executable())}} _run && .venv/bin/kasparro etl {{args}}; fi

# Run the tests
test *args: _develop
    .venv/bin/pytest -n 4 {{args}}

# Send requests made from the OpenAPI document for ten minutes
fuzz *args: _develop
    KASPARRO_TEST_FUZZ=600 .venv/bin/pytest tests/web/openapi/test_conformance.py {{args}}

# Measure loading next to psql, and responses next to a bare app and a FastAPI app
bench *args: _develop
    .venv/bin/python -m tests.bench {{args}}

# Make services, PostgreSQL and upstreams fail for 200 rounds, and check that nothing is lost or wrong
chaos *args: _develop
    .venv/bin/python -m tests.chaos {{args}}

# Make pictures of every view of the page in screenshots/, and docs/page.png for the README
screenshots: _develop
    .venv/bin/python -m tests.screenshots

# Check code, types, SQL and imports
lint: _develop
    .venv/bin/ruff check && .venv/bin/ruff format --check && .venv/bin/mypy && .venv/bin/sqlfluff lint sql && .venv/bin/lint-imports

# Format the code
fmt: _develop
    .venv/bin/ruff check --fix && .venv/bin/ruff format

# Build one executable file that needs nothing but Linux: dist/kasparro-VERSION-linux-MACHINE
binary:
    python3 .ci/binary/build.py

# Follow the stack's logs
logs *args:
    {{compose}} logs --follow {{args}}

# Lock the newest allowed versions, with hashes and without addresses
lock: _develop (_lock "build" "requirements.txt") (_lock "dev" "tests/requirements.txt") (_lock "binary" ".ci/binary/requirements.txt" "")

_lock group file project="pyproject.toml":
    .venv/bin/pip install -q uv && .venv/bin/uv pip compile -q --universal --upgrade --generate-hashes --no-annotate --python-version 3.11 --custom-compile-command "just lock" --group {{group}} -o {{file}} {{project}}

_run:
    @.ci/setup

_develop:
    @.ci/setup tests
