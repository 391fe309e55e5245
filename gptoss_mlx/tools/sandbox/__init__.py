"""The process that runs a model's Python, and the sandbox around it.

`python` starts it by path, `python -I sandbox/__main__.py SETTINGS`, with the standard library alone, so that the rest
of the package need not be visible inside the sandbox.

- `protocol`: what both ends of the pipes agree on.
- `keeper`: the processes: who starts, stops and ends whom.
- `linux`: namespaces, a file system of its own, no privileges, a filter of system calls.
- `macos`: a Seatbelt profile, which has not been run yet.
- `worker`: runs code as a notebook does.
"""
