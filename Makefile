# What .ci/run checks, in the virtual environment at hand: . .venv/bin/activate && make
.PHONY: all setup format lint types tests docs site pictures ci

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

docs: # docs/cli.md and docs/functions.md from the code
	python tools/help_pages.py
	python tools/function_pages.py

site: # site/index.html from docs/; needs '.[docs]'
	python -m sphinx -q -W --keep-going -n -b html -c docs/_site . site

pictures: # docs/images from the pocket set's own answers; needs a browser
	python tools/readme_picture.py
	python tools/page_picture.py
	python tools/docs_pictures.py

ci:
	.ci/run
