"""The lab: real machines, a real 2021 homeserver, and the milestones run on them."""

from __future__ import annotations

import sys
from pathlib import Path

#: What the project's own code needs, for programs that are run from the checkout.
_UTILS = str(Path(__file__).resolve().parents[2] / "salt/_utils")
if _UTILS not in sys.path:
    sys.path.insert(0, _UTILS)
