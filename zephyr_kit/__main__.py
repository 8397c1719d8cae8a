"""`python -m zephyr_kit` is `zkit`."""

from __future__ import annotations

from zephyr_kit.cli import main

if __name__ == "__main__":
    main()
