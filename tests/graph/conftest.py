"""Let the tests of this room import the model builder by its name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
