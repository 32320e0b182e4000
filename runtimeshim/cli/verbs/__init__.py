"""The verbs, one a file: each has FLAGS and `run(context, options, arguments) -> exit code`."""
