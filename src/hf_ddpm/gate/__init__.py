"""Checks of files that may come from a stranger: once, when they are opened, before anything is built from them."""
