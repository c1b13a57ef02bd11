"""`python -m merfast`."""

import sys

from merfast.cli import main

sys.exit(main())
