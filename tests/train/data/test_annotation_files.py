"""Annotation files that are not what they should be: each is one error with file and line, and no clip is lost."""

import gzip
import io
import json
import zipfile

import pytest
from tiny_layouts import WRITERS

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import read_csv, read_json, read_json_lines, read_list
from emcl_train.data.annotations import load_annotations
from emcl_train.data.datasets import lsmdc, msvd
from emcl_train.data.plain_text import text_of
from emcl_train.errors import UserError
from emcl_train.recipes import load_recipe

COLUMNS = ("video_id", "sentence")


def rows_of(path, text, header="key,video_id,sentence"):
    path.write_bytes(f"{header}\n{text}".encode())
    return [row["sentence"] for row in read_csv(path, COLUMNS)]


# Rows of CSV.

BROKEN_ROWS = {
    "never closed": ('r0,v0,"a man says hello\nr1,v1,two cats\nr2,v2,rain\n', r'line 2: a quote \("\) opens, and no'),
    "never closed at the end": ('r0,v0,rain\nr1,v1,"a man says hello', r'line 3: a quote \("\) opens, and no other'),
    "never closed, blank lines above": ('\n\nr0,v0,"a man\n', r"line 4: a quote"),
    "closed by a curly one": (
        'r0,v0,"a man, who waves\u201d\nr1,v1,two cats\n',
        r'line 2: a quote \("\) opens, and no',
    ),
    "opened by a curly one": ("r0,v0,\u201ca man, who waves\u201d\n", r"line 2: 4 cells, expected 3.*into quotes"),
    "opened below a space": ('r0,v0, "a man, who waves"\n', r"line 2: 4 cells, expected 3"),
    "opened twice": ('r0,v0,"a man\nr1,v1,"two cats"\n', r"line 2: text follows a closing quote"),
    "closed in another row": (
        'r0,v0,"a man\nr1,v1,two cats\nr2,v2,rain"\n',
        r"line 2: a quote .* closed 2 lines below",
    ),
    "closed in another row, CRLF": ('r0,v0,"a man\r\nr1,v1,two cats"\r\n', r"line 2: .*such as \"r1,v1,two cats\""),
    "closed in another row, CR": ('r0,v0,"a man\rr1,v1,two cats"\r', r"line 2: .*such as \"r1,v1,two cats\""),
    "id over two lines": ('r0,"v0\nv1",rain\n', r"line 2: a quote .* closed 1 line below"),
    "backslash before a quote": ('r0,v0,"he says \\"hi\\", and waves"\n', r"line 2: text follows a closing quote"),
    "backslash before a comma": ("r0,v0,a man\\, who waves\n", r"line 2: 4 cells, expected 3"),
    "comma": ("r0,v0,rain\nr1,v1,a man, who waves\n", r"line 3: 4 cells, expected 3, one for each column"),
    "comma at the end": ("r0,v0,two cats,\n", r"line 2: 4 cells, expected 3, .*; delete the commas at its end"),
    "too few cells": ("r0,v0,rain\nv1,two cats\n", r"line 3: sentence is empty; fill it, or delete the line"),
    "line break without quotes": ("r0,v0,a man\nwho waves\n", r"line 3: video_id is empty"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN_ROWS.values(), ids=BROKEN_ROWS)
def test_a_broken_row_is_an_error_with_its_line(text, message, tmp_path):
    with pytest.raises(UserError, match=rf"rows\.csv, {message}"):
        rows_of(tmp_path / "rows.csv", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"a man,video1\nb",video2\n', r'line 2: a quote .* closed 1 line below, .* such as "a man,video1"'),
        ('"a man,video1\nrain,video2\nb",video3\n', r"line 2: a quote .* closed 2 lines below"),
        ('c,video1\n"a man,video2\r\nand b",video3\n', r"line 3: a quote .* closed 1 line below"),
    ],
)
def test_a_row_that_a_quote_takes_into_the_next_is_an_error_where_captions_come_first(text, message, tmp_path):
    with pytest.raises(UserError, match=rf"rows\.csv, {message}"):
        rows_of(tmp_path / "rows.csv", text, header="sentence,video_id")


def test_a_caption_of_two_lines_may_come_first(tmp_path):
    text = '"a man, who waves\nand leaves",video1\n"a man\nwaves",video2\n'
    found = rows_of(tmp_path / "rows.csv", text, header="sentence,video_id")
    assert found == ["a man, who waves\nand leaves", "a man\nwaves"]


def test_a_missing_cell_of_a_column_that_nobody_reads_is_an_error_too(tmp_path):
    with pytest.raises(UserError, match=r"rows\.csv, line 3: 2 cells, expected 3"):
        rows_of(tmp_path / "rows.csv", "v0,rain,9\nv1,snow\n", header="video_id,sentence,category")


def test_a_column_named_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has the column 'sentence' more than once; rename or delete one"):
        rows_of(tmp_path / "rows.csv", "v0,rain,snow\n", header="video_id,sentence,sentence")


WHOLE_ROWS = {
    "commas": ('r0,v0,"one, two, three"\n', "one, two, three"),
    "quotes": ('r0,v0,"he says ""hi"", and waves"\n', 'he says "hi", and waves'),
    "quotes inside": ('r0,v0,he says "hi"\n', 'he says "hi"'),
    "one quote inside": ('r0,v0,a 5" screen\n', 'a 5" screen'),
    "curly quotes": ("r0,v0,he says \u201chi\u201d\n", "he says \u201chi\u201d"),
    "backslashes": ("r0,v0,a \\ b\\n c\\\\\n", "a \\ b\\n c\\\\"),
    "two lines": ('r0,v0,"a man waves,\nand leaves"\n', "a man waves,\nand leaves"),
    "other ends of lines": ("r0,v0,one\u2028two\x85three\x0bfour\n", "one\u2028two\x85three\x0bfour"),
    "other ends of lines in quotes": ('r0,v0,"one\u2028two, three, four, five"\n', "one\u2028two, three, four, five"),
    "CRLF": ('r0,v0,"a, b"\r\n', "a, b"),
    "old Mac": ('r0,v0,"a, b"\r', "a, b"),
}


@pytest.mark.parametrize(("text", "caption"), WHOLE_ROWS.values(), ids=WHOLE_ROWS)
def test_a_whole_row_keeps_its_caption_to_the_letter(text, caption, tmp_path):
    end = text[len(text.rstrip("\r\n")) :]
    assert rows_of(tmp_path / "rows.csv", f"{text}r1,v1,rain{end}") == [caption, "rain"]


# Columns of LSMDC, where quotes mean nothing.

TIMES = "00.01.02.345\t00.01.04.678\t00.01.02.345\t00.01.04.678"


@pytest.mark.parametrize(
    "sentence",
    ['"SOMEONE says hello', '"SOMEONE waves\u201d', "SOMEONE, who waves", 'He \\"waves\\".', "5", "SOMEONE says\tno."],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_sentence_of_lsmdc_is_taken_as_it_stands(sentence, end, tmp_path):
    lines = [f"clip{n}\t{TIMES}\t{text}" for n, text in enumerate([sentence, "It rains.", "It snows."])]
    (tmp_path / "a.csv").write_bytes((end.join(lines) + end).encode())
    found = {"clip0": [sentence], "clip1": ["It rains."], "clip2": ["It snows."]}
    assert lsmdc.read_sentences(tmp_path / "a.csv") == (found, 3)


def test_the_other_end_of_a_line_inside_a_sentence_of_lsmdc_ends_no_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(f"clip0\t{TIMES}\tIt rains.\rIt snows.\nclip1\t{TIMES}\tSun.\n".encode())
    assert lsmdc.read_sentences(tmp_path / "a.csv") == ({"clip0": ["It rains.\rIt snows."], "clip1": ["Sun."]}, 2)


@pytest.mark.parametrize("time", ["nan", "-", "", "1.5s", "4e0", "-1", " 00:01:02,345 "])
def test_times_of_lsmdc_that_nobody_reads_may_be_written_otherwise(time, tmp_path):
    (tmp_path / "a.csv").write_text(f"clip0\t{time}\t{time}\t{time}\t{time}\t1942.\t\n")
    assert lsmdc.read_sentences(tmp_path / "a.csv") == ({"clip0": ["1942."]}, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"clip1\t{TIMES}", r"line 2: 5 columns, expected 6"),
        (f"clip1\t7\t{TIMES}\tIt rains.", r"line 2: columns 2 to 5 are .* and the sentence is \"00\.01\.04\.678"),
        ("clip1\t1\t2\t3\tIt rains,\tit snows.", r"line 2: columns 2 to 5 are '1', '2', '3', 'It rains,' and the"),
        (f"clip1 {TIMES} It rains.".replace("\t", ","), r"line 2: 1 column, expected 6"),
        ("and the rest of a sentence", r"line 2: 1 column, expected 6"),
    ],
)
def test_a_line_of_lsmdc_with_more_or_fewer_columns_is_an_error(line, message, tmp_path):
    (tmp_path / "a.csv").write_text(f"clip0\t{TIMES}\tIt rains.\n{line}\n")
    with pytest.raises(UserError, match=rf"a\.csv, {message}"):
        lsmdc.read_sentences(tmp_path / "a.csv")


# Files that are something else.

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
PAGES = {
    "page": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
    "page in capitals": b"\n\n<HTML>\n<BODY>404</BODY></HTML>",
    "page below a comment": b"\xef\xbb\xbf<!-- saved from url=(0014)about:internet -->\n<html lang='en'>",
    "page in XML": b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">\n<html></html>',
}


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.json", "{}")
    return file.getvalue()


OTHER_FILES = {
    **{name: (page, "an HTML page, not the file that its name says; .* save the file") for name, page in PAGES.items()},
    "message in XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
    "message": (b"<Error><Code>NoSuchKey</Code></Error>", "an XML document"),
    "git-lfs": (POINTER, r"a pointer of git-lfs, .*run `git lfs pull`"),
    "git-annex": (b"../../.git/annex/objects/Xk/9j/SHA256E-s12--ab/SHA256E-s12--ab", "a pointer of git-annex"),
    "gzip": (gzip.compress(b"[]"), "a gzip archive, .*unpack it"),
    "zip": (zipped(), "a zip archive"),
    "PDF": (b"%PDF-1.7\n", "a PDF"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), OTHER_FILES.values(), ids=OTHER_FILES)
@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_json(path, "annotations"),
        lambda path: read_csv(path, COLUMNS),
        lambda path: read_json_lines(path, "an object"),
        read_list,
        lsmdc.read_sentences,
        msvd.read_captions,
    ],
    ids=["json", "csv", "jsonl", "list", "tabs", "pickle"],
)
def test_a_file_that_is_something_else_is_named_by_what_it_is(read, content, message, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=rf"{tmp_path / 'file'} is {message}"):
        read(tmp_path / "file")


@pytest.mark.parametrize("recipe", WRITERS)
def test_every_annotation_file_of_every_layout_is_looked_at(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_layouts.write_video", lambda path, *_, **__: path.write_bytes(b"clip"))
    WRITERS[recipe](tmp_path / "set")
    config = load_recipe(recipe).data
    config.root = tmp_path / "set"
    load_annotations(config)

    for path in sorted(path for path in config.root.iterdir() if path.is_file()):
        before = path.read_bytes()
        for content, name in ((POINTER, "a pointer of git-lfs"), (PAGES["page"], "an HTML page")):
            path.write_bytes(content)
            with pytest.raises(UserError, match=rf"{path} is {name}"):
                load_annotations(config)
        path.write_bytes(before)


# Encodings.

TEXTS = {
    "list": "video1\nvideo2\n",
    "json": json.dumps({"video1": ["caf\u00e9 au lait, \u201cplease\u201d"]}, ensure_ascii=False),
    "chinese": json.dumps({f"video{n}": {"chCap": ["一个男人在跑步"] * 2} for n in range(9)}, ensure_ascii=False),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_wide_encodings_are_named_with_and_without_their_mark(text, encoding, tmp_path):
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(
        UserError, match=rf"a\.json is not UTF-8: .*, as in {name}; convert it, .*`iconv -f {name.lower()} -t"
    ):
        text_of(text.encode(encoding), tmp_path / "a.json")


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_utf_8_is_read_with_and_without_its_mark(text, tmp_path):
    assert text_of(text.encode(), tmp_path / "a.json") == text
    assert text_of(text.encode("utf-8-sig"), tmp_path / "a.json") == text


@pytest.mark.parametrize("zeros", [1, 4, 4096])
def test_zeros_in_a_text_are_no_encoding_but_damage(zeros, tmp_path):
    content = b"video1\nvideo2\n" * 30 + b"\0" * zeros
    with pytest.raises(UserError, match=r"a\.txt is not text: it holds a zero byte at offset 420; copy or download"):
        text_of(content, tmp_path / "a.txt")


def test_what_stands_in_place_of_json_is_shown(tmp_path):
    (tmp_path / "a.json").write_text("404: Not Found\n")
    with pytest.raises(
        UserError, match=r"a\.json is not JSON: .* at line 1, column \d, it begins with '404: Not Found'"
    ):
        read_json(tmp_path / "a.json", "annotations")


# Keys.


def test_a_key_with_two_values_is_an_error_and_one_said_twice_is_not(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"v_a": {"sentences": ["x"]}, "v_a": {"sentences": ["x"]}}')
    assert read_json(path, "captions") == {"v_a": {"sentences": ["x"]}}
    path.write_text('{"v_a": {"sentences": ["x"]}, "v_b": 1, "v_a": {"sentences": ["y"]}}')
    with pytest.raises(UserError, match=r"a\.json: 'v_a' stands there twice, with .*\"x\".* and .*\"y\".*; join or"):
        read_json(path, "captions")
    path.write_text('{"video": "a", "captions": ["x"], "captions": ["y"]}')
    with pytest.raises(UserError, match=r"a\.json, line 1: 'captions' stands there twice"):
        read_json_lines(path, "an object")


def test_no_clip_of_a_test_list_is_lost_to_an_open_quote(tmp_path):
    WRITERS["msrvtt-9k"](tmp_path / "set")
    path = tmp_path / "set" / "MSRVTT_JSFUSION_test.csv"
    path.write_text(path.read_text().replace(",a person", ',"a person', 1))
    with pytest.raises(UserError, match=r"MSRVTT_JSFUSION_test\.csv, line 2: a quote"):
        load_annotations(DataConfig(root=tmp_path / "set"))
