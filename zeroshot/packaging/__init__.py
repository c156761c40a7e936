"""The installed distribution of this package: its version, and how to install its extras."""
