# What .ci/run checks, in the virtual environment at hand: . .venv/bin/activate && make
.PHONY: all setup format lint types tests docs picture ci

all: lint types tests

setup:
	pip install -e ".[test,dev,data]"

format:
	ruff check --fix
	ruff format

lint:
	ruff check
	ruff format --check

types:
	mypy

tests:
	python -m pytest -n 2

docs: # docs/cli.md from the commands' own --help
	python tools/help_pages.py

picture: # docs/images/captions.png from the pocket set's own answers
	python tools/readme_picture.py

ci:
	.ci/run
