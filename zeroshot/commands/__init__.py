"""The command line: options, runner, screen, and one file for each family of commands."""
