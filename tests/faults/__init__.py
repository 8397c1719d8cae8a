"""What a run survives: the tests of RELIABILITY section 5 that one process can be put to.

In the ordinary test run each has the smaller of its counts; `make faults` takes the full ones
(ZKIT_FAULTS=full) and writes the table of docs/reliability.md.
"""

import sys
from pathlib import Path

# For `python -m tests.faults.…`; pytest does the same.
sys.path.insert(0, str(Path(__file__).parents[1]))
