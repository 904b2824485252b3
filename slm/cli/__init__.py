"""The `slm` command line: arguments to typed configurations, then one call.

Owns words and options. Does not own any work: every command is a function of another room, imported
when the command runs, so that `slm --help` is immediate.
"""
