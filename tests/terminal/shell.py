"""A shell with job control for tests: `python shell.py COMMAND ...`.

It runs one command in the foreground; `fork WORDS ...` is `python WORDS ...` in a fork of this process. When that
stops, it says so, and whether the terminal then echoes and reads lines (it sets no modes itself, so that it shows what
is left behind), and takes `fg`, `bg` and `kill NAME`.
"""

import os
import signal
import sys
import termios

import zygote

TERMINAL = 0


def say(*words):
    modes = termios.tcgetattr(TERMINAL)[3]
    state = "echoes" if modes & termios.ECHO else "silent", "lines" if modes & termios.ICANON else "raw"
    print("shell:", *words, *state, flush=True)


def foreground(group):
    os.tcsetpgrp(TERMINAL, group)


def wait():
    """Until the job stops or ends."""
    _, status = os.waitpid(job, os.WUNTRACED)
    foreground(os.getpgrp())
    if os.WIFSTOPPED(status):
        say("stopped")
        return
    say("ended", os.WTERMSIG(status) if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}")
    sys.exit()


os.setpgid(0, 0) if os.getsid(0) != os.getpid() else None
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
signal.signal(signal.SIGTSTP, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    foreground(os.getpid())
    for number in (signal.SIGTTOU, signal.SIGTSTP):
        signal.signal(number, signal.SIG_DFL)
    if sys.argv[1] == "fork":
        zygote.run_python(sys.argv[2:])
    os.execvp(sys.argv[1], sys.argv[1:])
wait()
for line in sys.stdin:
    match line.split():
        case ["fg"]:
            foreground(job)
            os.killpg(job, signal.SIGCONT)
            wait()
        case ["bg"]:
            os.killpg(job, signal.SIGCONT)
            say("continued")
        case ["kill", name]:
            os.killpg(job, getattr(signal, name))
