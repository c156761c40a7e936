"""The terminal and the pipes of a command: its streams, its line of progress, Ctrl-C."""
