"""All runs of a folder, live, as a page on this machine alone."""
