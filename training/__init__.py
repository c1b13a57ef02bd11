"""What writes bundles; not part of the installed package."""
