"""Wire format of the protocol's bodies."""

from primespark.core.encoding import compress, content_digest, decode_body, decompress, encode_body

__all__ = ["compress", "content_digest", "decode_body", "decompress", "encode_body"]
