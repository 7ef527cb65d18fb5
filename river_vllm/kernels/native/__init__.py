"""River's own CPU kernel, compiled on the machine that runs it."""
