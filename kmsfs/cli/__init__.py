"""The command line: arguments in, text or JSON out. One module per group of commands."""
