"""The installed distribution of this package: its version, and how to get its extras."""
