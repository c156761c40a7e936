"""Runs that write annotation files, and the command that makes them from rows."""
