"""Run the command line: ``python -m onnxcp``."""

import sys

from onnxcp.cli.main import main

sys.exit(main())
