"""`python -m avdistill`."""

import sys

from avdistill.cli import main

sys.exit(main())
