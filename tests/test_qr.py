"""QR codes against known ones: those that python-qrcode 8.2 makes of the same texts and masks."""

import hashlib

import pytest

import chat_web

URL = "http://192.168.1.20:8087/"
# Version, length of the text (the first of its version, or as much as it takes), mask, and the
# beginning of the SHA-256 of its rows.
KNOWN = [
    (1, 1, 4, "25f2189b79626a52"),
    (1, 14, 1, "1e6c580401aa2469"),
    (2, 15, 5, "89523ee11fc17e59"),
    (2, 26, 2, "bb43ff092751a2e5"),
    (3, 27, 6, "05a387d551f6543e"),
    (3, 42, 3, "2b1bc1adfb7dd850"),
    (4, 43, 7, "daa885c864685018"),
    (4, 62, 4, "d4e71659815d386e"),
    (5, 63, 0, "232a7efd64dc0e84"),
    (5, 84, 5, "d6a5bf388588896e"),
    (6, 85, 1, "e2f9b38efddd13f3"),
    (6, 106, 6, "98ebb9fdcdeeeb4a"),
    (7, 107, 2, "e20e867c6c49513f"),
    (7, 122, 7, "36d562d37a392edd"),
    (8, 123, 3, "488a2f4a81e730f1"),
    (8, 152, 0, "ec531610b014c5fd"),
    (9, 153, 4, "e52ad2cf9c9c41e4"),
    (9, 180, 1, "f4e83f43bac39d78"),
    (10, 181, 5, "172e62c7ca5e3713"),
    (10, 213, 2, "8472aa3574287851"),
]

# Version 2, mask 2.
DRAWN = """\
#######   ### #   #######
#     #   #  # #  #     #
# ### # ##  #   # # ### #
# ### # #   ##    # ### #
# ### # #     #   # ### #
#     # #   #  ## #     #
####### # # # # # #######
        #      #
# #####  ##### ## #####
 ## #      ####  #     #
   #  ## #  ## #  ## # ##
 ### # #  ##    #   #   #
  # # ####  ##    ### ###
#  ##  ###   ##      # #
#   ### #  ##  # # # # ##
# ##   ### #   #     #  #
#  #  #   ####  ##### #
        ##  # # #   ###
#######   #     # # #####
#     # ####   ##   ## ##
# ### # # #### ########
# ### # ######### ### ###
# ### # ##       #    # #
#     #    #    # ####  #
####### ###  # # ########"""


def text_of(length):
    """So many bytes of an address over and over."""
    return (URL * 20)[:length]


def drawn(code):
    """A code as a picture of # and blanks."""
    return ["".join(" #"[module] for module in row).rstrip() for row in code]


@pytest.mark.parametrize("version, length, mask, digest", KNOWN)
def test_qr_code_known(version, length, mask, digest):
    """Every version with the least and the most that it holds, and every mask."""
    code = chat_web.qr_code(text_of(length), mask)
    assert len(code) == 17 + 4 * version
    assert hashlib.sha256(b"".join(code)).hexdigest()[:16] == digest


def test_qr_code_drawn():
    """One to look at: finders, timing, alignment, format, data."""
    assert drawn(chat_web.qr_code(URL, 2)) == DRAWN.split("\n")


def test_qr_code_takes_the_mask_that_is_read_best():
    """Without a mask it is the one of the least penalty."""
    penalty = chat_web._qr_penalty
    penalties = [penalty(chat_web.qr_code(URL, mask)) for mask in range(8)]
    assert penalty(chat_web.qr_code(URL)) == min(penalties) < max(penalties)


def test_qr_code_too_long():
    """213 bytes are all that version 10 holds; letters count in UTF-8."""
    assert len(chat_web.qr_code("x" * 213)) == 57
    for text in ("x" * 214, "\u65e5" * 72):
        with pytest.raises(ValueError, match="too long"):
            chat_web.qr_code(text)


@pytest.mark.parametrize("dark_on_light", [False, True])
def test_qr_lines_show_the_code(dark_on_light):
    """Half blocks and ## say the same, with four modules of light on each side."""
    code = chat_web.qr_code(URL)
    size = len(code) + 8
    quiet = [bytes(size)] * 4
    expected = [*quiet, *(bytes(4) + row + bytes(4) for row in code), *quiet]
    light = int(not dark_on_light)
    halves = []
    for line in chat_web.qr_lines(code, dark_on_light):
        assert len(line) == size
        halves.append(bytes((char in "\u2580\u2588") ^ light for char in line))
        halves.append(bytes((char in "\u2584\u2588") ^ light for char in line))
    assert halves[:size] == expected
    whole = chat_web.qr_lines(code, dark_on_light, blocks=False)
    assert [bytes((char == "#") ^ light for char in line[::2]) for line in whole] == expected
    assert all(line[::2] == line[1::2] for line in whole)
