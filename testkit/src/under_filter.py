"""Runs a program that can make only some system calls: under_filter.py NUMBERS PROGRAM [ARGUMENT...]

NUMBERS are the allowed calls, joined by commas; all others fail with EPERM. What systemd makes of
SystemCallFilter= and SystemCallErrorNumber=EPERM.
"""

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO_EPERM = 0x7FFF0000, 0x00050001


class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def main():
    # The number of the call is the first word of struct seccomp_data.
    code = [(LOAD_WORD, 0, 0, 0)]
    for number in sys.argv[1].split(","):
        code += [(JUMP_IF_EQUAL, 0, 1, int(number)), (RETURN, 0, 0, ALLOW)]
    code.append((RETURN, 0, 0, ERRNO_EPERM))
    filter_bytes = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    program = Program(len(code), filter_bytes)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    os.execv(sys.argv[2], sys.argv[2:])


main()
