"""What builds the documentation: pages made from the code, a navigation that bears absent pages, links out of `docs/`."""
