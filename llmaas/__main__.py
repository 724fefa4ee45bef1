"""``python -m llmaas`` runs the command ``llmaas``. Law: does nothing else."""

from __future__ import annotations

import sys

from llmaas.cli.main import main

sys.exit(main())
