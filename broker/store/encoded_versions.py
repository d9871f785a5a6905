"""A version as workers fetch it, in fewer bytes: made of its file, once, beside it.

Rules that hold here:

- The file is what `fedmq.fedcore.encoded_model` says, which depends on nothing but the version. So it is never synced:
  the next process deletes what it finds, and makes it again where somebody asks for it.
- Under its final name it is whole: it is written aside and renamed. It goes with its version (`VersionStore.delete`).
- Memory is a tile, whatever the size of the model.
"""

import xxhash

from fedmq.fedcore.encoded_model import encoded
from fedmq.fedcore.errors import ModelError, StateError

from ..events import ModelEncoded
from .refusals import patiently, unwritten
from .versions import VersionStore

__all__ = ["encode_version"]


def encode_version(versions: VersionStore, version: int, encoding: str) -> ModelEncoded:
    """Write a version in an encoding; what came of it.

    A version that the encoding cannot say, or that is no longer kept, is no error: the event says why there is no file.

    Raises
    ------
    StateError
        When the disk refuses.
    """
    if not versions.path(version).exists():
        return ModelEncoded(version, encoding, refusal="no longer kept")
    path = versions.path(version, encoding)
    aside = path.with_name(path.name + ".new")
    digest, size = xxhash.xxh3_128(), 0
    try:
        file = patiently(lambda: versions.file(version))
        with patiently(lambda: aside.open("wb", buffering=0)) as out:
            for chunk in encoded(file, versions.layout(version), encoding):
                rest = memoryview(chunk).cast("B")
                digest.update(rest)
                size += rest.nbytes
                while rest:
                    rest = rest[out.write(rest) :]
        aside.replace(path)
    except ModelError as error:
        aside.unlink()
        return ModelEncoded(version, encoding, refusal=str(error))
    except StateError:
        if versions.path(version).exists():
            raise
        return ModelEncoded(version, encoding, refusal="no longer kept")  # collected meanwhile
    except OSError as error:
        raise unwritten(path, error) from error
    return ModelEncoded(version, encoding, size, digest.digest())
