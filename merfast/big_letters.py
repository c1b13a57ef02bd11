"""Words in letters three lines high, for `merfast live`: five rows of pixels, two to a character."""

from __future__ import annotations

_ROWS = {
    "A": ".##. #..# #### #..# #..#",
    "D": "###. #..# #..# #..# ###.",
    "E": "#### #... ###. #... ####",
    "G": ".### #... #.## #..# .###",
    "H": "#..# #..# #### #..# #..#",
    "I": "### .#. .#. .#. ###",
    "L": "#... #... #... #... ####",
    "N": "#..# ##.# #.## #..# #..#",
    "O": ".##. #..# #..# #..# .##.",
    "P": "###. #..# ###. #... #...",
    "R": "###. #..# ###. #.#. #..#",
    "S": ".### #... .##. ...# ###.",
    "T": "##### ..#.. ..#.. ..#.. ..#..",
    "U": "#..# #..# #..# #..# .##.",
    "W": "#...# #...# #.#.# ##.## #...#",
    "Y": "#.# #.# .#. .#. .#.",
    "0": ".##. #..# #..# #..# .##.",
    "1": ".# ## .# .# .#",
    "2": "###. ...# .##. #... ####",
    "3": "###. ...# .##. ...# ###.",
    "4": "#..# #..# #### ...# ...#",
    "5": "#### #... ###. ...# ###.",
    "6": ".##. #... ###. #..# .##.",
    "7": "#### ...# ..#. .#.. .#..",
    "8": ".##. #..# .##. #..# .##.",
    "9": ".##. #..# .### ...# .##.",
    "%": "#..# ...# ..#. .#.. #..#",
    " ": ".. .. .. .. ..",
}
_BLOCKS = {"..": " ", "#.": "▀", ".#": "▄", "##": "█"}

HEIGHT = 3
"""Lines of a word."""


def big(text: str) -> list[str]:
    """The three lines of a word, all equally wide; letters of the six emotions, digits, "%" and blanks.

    Raises:
        KeyError: a character that none of these needs.
    """
    glyphs = [_ROWS[c].split() for c in text.upper()]
    rows = [".".join(glyph[y] for glyph in glyphs) for y in range(5)]
    rows.append("." * len(rows[0]))
    return ["".join(_BLOCKS[a + b] for a, b in zip(rows[y], rows[y + 1], strict=True)) for y in (0, 2, 4)]
