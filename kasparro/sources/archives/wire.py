"""What the service and the worker say to each other: messages of msgpack, each after its length."""

import struct
from typing import IO

import msgspec

from kasparro.sources.archives.reader import Job, Portion, Problem

HEAD = struct.Struct("<I")


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The file of the last job was worked through, or told to be lost."""


Message = Portion | Problem | Finished

_encoder = msgspec.msgpack.Encoder()
message_of = msgspec.msgpack.Decoder(Message).decode
_job_of = msgspec.msgpack.Decoder(Job).decode


def packed(message: Message | Job) -> bytes:
    """A message ready to be written."""
    content = _encoder.encode(message)
    return HEAD.pack(len(content)) + content


def next_job(source: IO[bytes]) -> Job | None:
    """The next job from a pipe; None at its end."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    content = source.read(HEAD.unpack(head)[0])
    return _job_of(content)
