"""Become the command given, as a shell's foreground job: it heeds SIGINT, and a terminal is its own."""

import fcntl
import os
import signal
import sys
import termios

signal.signal(signal.SIGINT, signal.SIG_DFL)
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 — nothing of a shell's is wanted
