"""Makes the helpers beside the tests importable, in the processes that a test starts as well."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
