"""The run-time checker of the test run: beartype, with `int` accepted for `float` (PEP 484).

beartype checks one item of a list, chosen by `random.getrandbits`. Here it draws from a generator
of its own: checked functions also run in threads, and hypothesis refuses that the random numbers of
the process change while it draws an example.
"""

import random

_of_the_process = random.getrandbits
random.getrandbits = random.Random().getrandbits
try:
    from beartype import BeartypeConf, beartype
    from beartype.door import is_bearable

    is_bearable([0], list[int])  # beartype has now imported its function
finally:
    random.getrandbits = _of_the_process

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
