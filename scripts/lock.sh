#!/usr/bin/env bash
# Pins every Python package, with hashes, into requirements-run.lock and requirements-dev.lock.
# Needs pip-tools: pip install pip-tools.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUSTOM_COMPILE_COMMAND=scripts/lock.sh
options=(-q --generate-hashes --strip-extras --allow-unsafe --no-emit-find-links --no-emit-index-url
    --no-emit-trusted-host --build-deps-for=editable)
pip-compile "${options[@]}" -o requirements-run.lock pyproject.toml
pip-compile "${options[@]}" --extra=dev -o requirements-dev.lock pyproject.toml
