"""Results as one page of HTML that needs nothing else: no network, no script, no other file.

Whatever came from a file is escaped.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
