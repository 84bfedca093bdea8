"""Additions to params.yaml: text that leaves every other byte as it is, and ready settings."""
