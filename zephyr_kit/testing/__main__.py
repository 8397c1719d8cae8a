"""`python -m zephyr_kit.testing`: the page of the laws."""

from zephyr_kit.testing.page import page

print(page(), end="")  # noqa: T201  it is what is asked for
