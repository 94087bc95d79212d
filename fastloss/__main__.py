"""``python -m fastloss COMMAND ...``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from fastloss._cli.train import main

    sys.exit(main())
