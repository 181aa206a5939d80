"""yamux frames as on the wire, so that tests can send what no session would."""

import struct

DATA, UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def frame(kind: int, flags: int, number: int, length: int, data: bytes = b"", version: int = 0) -> bytes:
    return struct.pack(">BBHII", version, kind, flags, number, length) + data
