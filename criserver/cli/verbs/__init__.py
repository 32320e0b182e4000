"""One module per verb of the command line.

Each has its help as its docstring, `add_arguments(parser)`, and `run(options)`, which returns the
exit code.
"""
