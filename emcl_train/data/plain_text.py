"""The text of an annotation file; of a file that is no UTF-8 text, the name of what it is.

A download that went wrong leaves a file under the right name: a page that asks to log in, a pointer of git-lfs, an
archive. Readers of JSON and CSV would blame its first character.
"""

import re
from pathlib import Path

from emcl_train.errors import UserError

LOOKED_AT = 4096
"""Bytes at the beginning of a file that tell what it is."""

MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte order marks, the longer first: that of UTF-16 begins one of UTF-32."""

SIGNATURES = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet)",
    b"PK\x05\x06": "an empty zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"%PDF-": "a PDF",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a spreadsheet of an old Excel",
    b"SQLite format 3\x00": "an SQLite database",
    b"PAR1": "a parquet file",
}

LFS_POINTER = re.compile(rb"version https?://(git-lfs|hawser)\.github\.com/spec/")
ANNEX_POINTER = re.compile(rb"(\.\./)*(\.git)?/annex/objects/")
HTML = re.compile(rb"<(!doctype\s+html|html|head|body|title|meta|script)[\s>]", re.IGNORECASE)
XML = re.compile(rb"<(\?xml|error|rss|svg)[\s>]", re.IGNORECASE)


def text_of(data: bytes, path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Args:
        data: the whole file.
        path: its place, for errors.

    Raises:
        UserError: it is something else, which is named as far as it can be told.
    """
    refuse_other_files(data, path)

    if (encoding := wide_encoding(data)) is not None:
        at = next(index for index, byte in enumerate(data) if byte in (0, 0xFE, 0xFF))
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[at]:02x} at offset {at}, as in {encoding.upper()}; convert it, for "
            f"example with `iconv -f {encoding} -t utf-8`"
        )

    try:
        text = data.decode("utf-8").removeprefix("\ufeff")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            f"convert it, for example with `iconv -f latin1 -t utf-8`"
        ) from error

    # A disk that broke off, or a copy that did, leaves zeros; no text has them.
    if "\0" in text:
        raise UserError(
            f"{path} is not text: it holds a zero byte at offset {data.index(0)}; copy or download it again"
        )
    return text


def refuse_other_files(data: bytes, path: Path) -> None:
    """Raise a UserError where the beginning of a file is that of a page, a pointer or an archive.

    Args:
        data: the file, or its first `LOOKED_AT` bytes.
        path: its place, for errors.
    """
    what, way_out = what_it_is(data)
    if what is not None:
        raise UserError(f"{path} is {what}, not the file that its name says; {way_out}")


def what_it_is(data: bytes) -> tuple[str | None, str]:
    """What a file is that no annotation file is, by its beginning, and the way out; None where nothing tells."""
    beginning = data[:LOOKED_AT].removeprefix(b"\xef\xbb\xbf").lstrip()

    if LFS_POINTER.match(beginning):
        return "a pointer of git-lfs", "run `git lfs pull` where it came from, and copy it again"
    if ANNEX_POINTER.match(beginning):
        return "a pointer of git-annex", "run `git annex get` where it came from, and copy it again"
    for signature, name in SIGNATURES.items():
        if beginning.startswith(signature):
            return name, "unpack it, or save it as text"

    # Pages may begin with a comment or with white space.
    if beginning.startswith(b"<") and HTML.search(beginning):
        return (
            "an HTML page",
            "the download gave a page in its place: open the link in a browser and save the file itself",
        )
    if XML.match(beginning):
        return "an XML document", "the download gave a message in its place, see what it says, and download it again"
    return None, ""


def wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32, by its byte order mark or by where its zeros are; None for all else."""
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return encoding

    # Without a mark: of the two or four bytes of a Latin letter or a punctuation mark, the same ones are always zero.
    lane = len(data[:LOOKED_AT]) // 4
    zeros = [data[: 4 * lane][start::4].count(0) for start in range(4)]
    if zeros[3] == lane and 2 * zeros[2] > lane > 0:
        return "utf-32le"
    if zeros[0] == lane and 2 * zeros[1] > lane > 0:
        return "utf-32be"

    # Text of other scripts still has spaces and punctuation marks; U+4E00 and its like have a zero in the other byte.
    even = zeros[0] + zeros[2]
    odd = zeros[1] + zeros[3]
    if odd > max(2 * even, lane / 5):
        return "utf-16le"
    if even > max(2 * odd, lane / 5):
        return "utf-16be"
    return None


def beginning_of(text: str) -> str:
    """The first words of a text that is not what was expected, for errors."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first if len(first) <= 60 else f"{first[:60]}…"
