"""``python -m zoo`` is ``revgnn-zoo``."""

import sys

from zoo.cli import main

sys.exit(main())
