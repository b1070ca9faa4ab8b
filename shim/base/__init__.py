"""What the shim's other rooms share: command line, options, socket, messages, status codes."""
