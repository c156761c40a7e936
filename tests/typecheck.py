"""The run-time checker of the test run: beartype, with `int` accepted for `float` (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
