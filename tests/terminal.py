"""A terminal for tests: bytes in and cells out. (program.py runs a command on one.)

    terminal = Terminal(rows=24, columns=80)
    terminal.feed(b"\x1b[1mhello")
    assert terminal.line(0) == "hello" and not terminal.unknown

Where terminals differ, the model does as xterm does: a character in the last column leaves the
cursor there, and the next one wraps (so erasing to the end of the line in between erases that
character); erased cells take the background, not the other attributes; a resize reflows nothing.
How wide emoji are is where they differ most; `joins_emoji` has the two schools:

    True   kitty, Ghostty, WezTerm, iTerm2: what ZWJ joins is one cell of two columns, so are an
           emoji with its skin tone and two regional indicators (a single one has one column)
    False  xterm, most others: every emoji has its own two columns, the skin tone too, a regional
           indicator has one

In both, an emoji variation selector (U+FE0F) makes two columns of one, except with `widens=False`
(again xterm). A cell that becomes wide in the last column moves to the next line. A combining mark
in the first column has no cell to go to: it is lost.

Left out: origin and insert mode, tab stops, character sets, mouse reports. What the model does not
know is in `unknown`, and has no effect. A scroll touches only the rows that it empties. It runs
anywhere, and takes no lock.
"""

import codecs
import collections
import functools
import re
import unicodedata

# Lines; older ones are dropped.
SCROLLBACK = 10_000

# The second half of a wide cell is ("", 0, style).
Cell = collections.namedtuple("Cell", "text width style")

SEQUENCE = re.compile(
    r"\x1b(?:\[(?P<params>[0-?]*)(?P<key>[ -/]*[@-~])|"
    r"\](?P<osc>[^\x07\x18\x1a\x1b]*)(?:\x07|\x1b\\)|"
                      r"[PX^_][^\x18\x1a\x1b]*\x1b\\|(?P<esc>[ -/]*[0-OQ-WYZ\\`-~]))")
# The beginning of a sequence, the longest that fits.
BEGINNING = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[]PX^_][^\x18\x1a\x1b]*|[ -/]*)")
ON = {1: "bold", 2: "dim", 3: "italic", 4: "underline", 5: "blink", 7: "reverse", 8: "hidden",
      9: "strike", 21: "underline"}
OFF = {22: {"bold", "dim"}, 23: {"italic"}, 24: {"underline"}, 25: {"blink"}, 27: {"reverse"},
       28: {"hidden"}, 29: {"strike"}}
# The modes with ? that are known.
MODES = {1, 7, 12, 25, 47, 1000, 1002, 1003, 1004, 1006, 1007, 1047, 1048, 1049, 2004, 2026}


# --- Characters ---

@functools.lru_cache(maxsize=None)
def char_width(char):
    """The columns of a character by itself: 0 for what joins the cell before it."""
    if unicodedata.category(char) in ("Mn", "Me",
                                      "Cf") and char != "\u00ad" or "\u1160" <= char <= "\u11ff":
        # The range has the vowels and finals of Korean syllables.
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def is_flag_half(char):
    """Is it a regional indicator?"""
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def is_pictograph(char):
    """About Unicode's Extended_Pictographic, which Python has no table of."""
    return (char in "\u00a9\u00ae\u2122\u2139" or "\U0001f000" <= char <= "\U0001faff"
            and not is_flag_half(char)
            or "\u203c" <= char <= "\u3299" and unicodedata.category(char) in ("So", "Sm", "Po"))


# --- The model ---

class Terminal:
    """What a terminal shows after the bytes that it was fed; not thread-safe.

    `titles`, `unknown` (sequences and control characters), `replies` (what it answered, also given
    to `on_reply`) and `scrollback` (lines that have left the main screen at its top) only grow.
    `modes` is the set of private modes that are on. `painted` (cells printed), `rows_touched`
    (printed or erased), `scrolls` and `bells` start anew with reset_counters(). `alternate`: the
    alternate screen is shown.
    """

    def __init__(self, rows=24, columns=80, joins_emoji=True, widens=True, on_reply=None):
        self.rows, self.columns = rows, columns
        self.joins_emoji, self.widens, self.on_reply = joins_emoji, widens, on_reply
        self.titles, self.unknown, self.replies = [], [], bytearray()
        self.scrollback = collections.deque(maxlen=SCROLLBACK)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # What has come of a sequence that is not whole yet.
        self._unparsed = ""
        self.reset_counters()
        self._reset()

    # What it shows

    cursor = property(lambda self: (self._row, self._column), doc="(row, column), from 0.")
    cursor_visible = property(lambda self: 25 in self.modes)
    autowrap = property(lambda self: 7 in self.modes)
    bracketed_paste = property(lambda self: 2004 in self.modes)

    def cell(self, row, column):
        """The Cell there; its style is a frozenset of "bold", "reverse", "fg=1", "bg=208",
        "fg=#ff8000" and the like."""
        return self._grid[row][column]

    def line(self, row):
        """The text of a row without the spaces at its end."""
        return "".join(cell.text for cell in self._grid[row]).rstrip(" ")

    def lines(self):
        """The text of every row."""
        return [self.line(row) for row in range(self.rows)]

    def text(self):
        """The rows, with line feeds between them."""
        return "\n".join(self.lines())

    def find(self, text):
        """The (row, column) of a text's first cell, from the top; None when no row has it."""
        for row, cells in enumerate(self._grid):
            at = "".join(cell.text for cell in cells).find(text)
            if at >= 0:
                # Where in the row's text each cell ends.
                ends, length = [], 0
                for cell in cells:
                    length += len(cell.text)
                    ends.append(length)
                return row, next(column for column, end in enumerate(ends) if end > at)
        return None

    def reset_counters(self):
        """Count from here on."""
        self.painted = self.scrolls = self.bells = 0
        self.rows_touched = set()

    def resize(self, rows, columns):
        """Crop or extend at the right and below; the main screen first scrolls up when the cursor
        would be cut off."""
        for grid in (self._main, self._other):
            if grid is self._main and (surplus := (self._saved_row() if self.alternate
                                                   else self._row) - rows + 1) > 0:
                self.scrollback.extend("".join(cell.text for cell in cells).rstrip(" ")
                                       for cells in grid[:surplus])
                del grid[:surplus]
            del grid[rows:]
            for cells in grid:
                if columns < len(cells) and cells[columns].width == 0:
                    cells[columns - 1] = Cell(" ", 1, cells[columns - 1].style)
                cells[columns:] = [Cell(" ", 1, frozenset())] * (columns - len(cells))
            grid += [[Cell(" ", 1, frozenset())] * columns for _ in range(rows - len(grid))]
        self.rows, self.columns = rows, columns
        self._top, self._bottom = 0, rows - 1
        self._move(self._row, self._column)

    # What it is fed

    def feed(self, data):
        """Take bytes, cut anywhere."""
        text, at = self._unparsed + self._decoder.decode(data), 0
        self._unparsed = ""
        while at < len(text):
            if text[at] != "\x1b":
                self._char(text[at])
                at += 1
            elif found := SEQUENCE.match(text, at):
                self._sequence(found)
                at = found.end()
            else:
                end = BEGINNING.match(text, at).end()
                if end == len(text) or end == len(text) - 1 and text[end] == "\x1b" and text[
                    at + 1:at + 2] in tuple("]PX^_"):
                    # Its last ESC may begin the terminator.
                    self._unparsed = text[at:]
                    return
                self.unknown.append(text[at:end])
                at = end

    def _char(self, char):
        if char in "\n\v\f":
            self._line_feed()
        elif char == "\r":
            self._move(self._row, 0)
        elif char == "\b":
            self._move(self._row, self._column - 1)
        elif char == "\t":
            self._move(self._row, self._column // 8 * 8 + 8)
        elif char == "\a":
            self.bells += 1
        elif char < " " or "\x7f" <= char < "\xa0":
            self.unknown.append(char)
        elif not self._join(char):
            self._put(char, min(char_width(char), self.columns), self._style)

    def _sequence(self, found):
        if found["key"]:
            params = found["params"]
            prefix = params[:1] if params[:1] in tuple("<=>?") else ""
            handler = self.CSI.get(prefix + found["key"])
            if (handler is None or re.search("[<-?]", params[len(prefix):])
                    or ":" in params and handler is not Terminal._sgr):
                self.unknown.append(found[0])
            elif handler is Terminal._sgr:
                self._sgr(params, found[0])
            else:
                numbers = [int(number[:5] or 0) for number in params[len(prefix):].split(";")]
                if handler(self, numbers) is False:
                    self.unknown.append(found[0])
        elif found["esc"] in self.ESC:
            self.ESC[found["esc"]](self)
        elif found["osc"] is not None and re.match("[012];", found["osc"]):
            self.titles.append(found["osc"][2:])
        else:
            self.unknown.append(found[0])

    # Printing

    def _put(self, text, width, style):
        if self._pending and self.autowrap or self._column + width > self.columns and self.autowrap:
            self._column = 0
            self._line_feed()
        column = min(self._column, self.columns - width)
        self._halve(self._row, column, column + width)
        self._grid[self._row][column:column
                              + width] = [Cell(text, width,
                                               style)] + [Cell("", 0, style)] * (width - 1)
        self.painted += 1
        self.rows_touched.add(self._row)
        self._column = min(column + width, self.columns - 1)
        self._pending = column + width == self.columns

    def _join(self, char):
        """Add the character to the cell before the cursor if that is where it belongs: say whether
        it is done."""
        if char_width(char) and not self.joins_emoji:
            return False
        cells, column = self._grid[self._row], self._column - (not self._pending)
        if column < 0:
            return char_width(char) == 0
        column -= cells[column].width == 0
        before = cells[column]
        if char_width(char) == 0:
            wide = (char == "\ufe0f" and self.widens
                    and (is_pictograph(before.text[0]) or before.text in tuple("#*0123456789")))
        elif is_flag_half(char):
            if len(before.text) > 1 or not is_flag_half(before.text):
                return False
            wide = True
        elif not is_pictograph(before.text[0]) or not is_pictograph(char) or not (
                before.text[-1] == "\u200d" or "\U0001f3fb" <= char <= "\U0001f3ff"):
            return False
        else:
            wide = char_width(char) == 2
        cells[column] = before._replace(text=before.text + char)
        self.rows_touched.add(self._row)
        if wide and before.width == 1:
            self._widen(column)
        return True

    def _widen(self, column):
        cell = self._grid[self._row][column]
        if column + 1 == self.columns:
            if not self.autowrap or self.columns == 1:
                return
            self._erase(self._row, column, column + 1)
        else:
            self._column, self._pending = column, False
        # It was counted when it was narrow.
        self.painted -= 1
        self._put(cell.text, 2, cell.style)

    def _halve(self, row, first, end):
        """Blank the halves outside of those wide cells that the columns from `first` to `end`
        cut."""
        cells = self._grid[row]
        if first < self.columns and cells[first].width == 0:
            cells[first - 1] = Cell(" ", 1, cells[first - 1].style)
            cells[first] = Cell(" ", 1, cells[first].style)
        if 0 < end < self.columns and cells[end].width == 0:
            cells[end] = Cell(" ", 1, cells[end].style)
            cells[end - 1] = Cell(" ", 1, cells[end - 1].style)

    # Moving, erasing, scrolling

    def _move(self, row, column):
        self._row = max(0, min(row, self.rows - 1))
        self._column = max(0, min(column, self.columns - 1))
        self._pending = False

    def _vertical(self, rows):
        """Move up or down, not out of the scroll region."""
        if rows < 0:
            row = max(self._row + rows, self._top if self._row >= self._top else 0)
        else:
            row = min(self._row + rows, self._bottom if self._row <= self._bottom
                      else self.rows - 1)
        self._move(row, self._column)

    def _line_feed(self):
        if self._row == self._bottom:
            self._scroll(self._top, 1, keep=True)
        self._move(self._row + (self._row != self._bottom), self._column)

    def _reverse_line_feed(self):
        if self._row == self._top:
            self._scroll(self._top, -1)
        self._move(self._row - (self._row != self._top), self._column)

    def _scroll(self, top, rows, keep=False):
        """Move what is between `top` and the bottom of the region up by `rows`, or down."""
        bottom, count = self._bottom + 1, min(abs(rows), self._bottom + 1 - top)
        self.scrolls += count
        blank = [self._blank(self.columns) for _ in range(count)]
        if rows < 0:
            self._grid[top:bottom] = blank + self._grid[top:bottom - count]
            self.rows_touched.update(range(top, top + count))
        else:
            if keep and top == 0 and not self.alternate:
                self.scrollback.extend(self.line(row) for row in range(count))
            self._grid[top:bottom] = self._grid[top + count:bottom] + blank
            self.rows_touched.update(range(bottom - count, bottom))

    def _lines(self, rows):
        """Insert lines at the cursor, or delete them: outside of the scroll region, nothing."""
        if self._top <= self._row <= self._bottom:
            self._scroll(self._row, rows)
            self._move(self._row, 0)

    def _blank(self, columns):
        return [Cell(" ", 1,
                     frozenset(name for name in self._style if name.startswith("bg=")))] * columns

    def _erase(self, row, first, end):
        end = min(end, self.columns)
        self._halve(row, first, end)
        self._grid[row][first:end] = self._blank(end - first)
        self.rows_touched.add(row)

    def _erase_line(self, numbers):
        if numbers[0] > 2:
            return False
        self._pending = False
        self._erase(self._row, 0 if numbers[0] else self._column,
                    self._column + 1 if numbers[0] == 1 else self.columns)

    def _erase_screen(self, numbers):
        if numbers[0] > 3:
            return False
        if numbers[0] == 3:
            self.scrollback.clear()
            return
        if numbers[0] < 2:
            self._erase_line(numbers)
        self._pending = False
        for row in range(*{0: (self._row + 1, self.rows), 1: (0, self._row),
                           2: (0, self.rows)}[numbers[0]]):
            self._erase(row, 0, self.columns)

    def _erase_chars(self, numbers):
        self._pending = False
        self._erase(self._row, self._column, self._column + max(numbers[0], 1))

    def _shift(self, count):
        """Insert blanks at the cursor, or delete characters."""
        cells, column, self._pending = self._grid[self._row], self._column, False
        count = max(-self.columns + column, min(count, self.columns - column))
        self._halve(self._row, column, column - min(count, 0))
        if count > 0:
            self._halve(self._row, self.columns - count, self.columns)
            cells[column:] = self._blank(count) + cells[column:self.columns - count]
        else:
            cells[column:] = cells[column - count:] + self._blank(-count)
        self.rows_touched.add(self._row)

    def _region(self, numbers):
        top, bottom = max(numbers[0], 1) - 1, min((numbers[1:] or [0])[0] or self.rows,
                                                  self.rows) - 1
        if top < bottom:
            self._top, self._bottom = top, bottom
            self._move(0, 0)

    # State

    def _reset(self):
        self.modes, self.alternate = {7, 25}, False
        # The saved cursor of each screen, by `alternate`.
        self._style, self._saved = frozenset(), {}
        self._main, self._other = ([self._blank(self.columns) for _ in range(self.rows)]
                                   for _ in range(2))
        # The screen that is shown.
        self._grid = self._main
        self._top, self._bottom = 0, self.rows - 1
        # _pending: the last column was printed to, the next character wraps.
        self._move(0, 0)

    def _save(self):
        self._saved[self.alternate] = self._row, self._column, self._pending, self._style

    def _restore(self):
        initial = 0, 0, False, frozenset()
        row, column, pending, self._style = self._saved.get(self.alternate, initial)
        self._move(row, column)
        self._pending = pending and self._column == self.columns - 1

    def _saved_row(self):
        return self._saved.get(False, (0,))[0]

    def _set_modes(self, numbers, on):
        for mode in numbers:
            if mode not in MODES:
                return False
            if mode in (47, 1047, 1049) and on != self.alternate or mode == 1048:
                if on and mode > 1047:
                    self._save()
                if mode != 1048:
                    self.alternate, self._grid = on, self._other if on else self._main
                if on and mode == 1049:
                    self._erase_screen([2])
                elif not on and mode > 1047:
                    self._restore()
            (self.modes.add if on else self.modes.discard)(mode)

    def _sgr(self, params, sequence):
        codes, style = params.split(";"), set(self._style)
        while codes:
            # 38:5:n is one parameter, 38;5;n three.
            code, *more = codes.pop(0).split(":")
            code = int(code[:5] or 0)
            if code in (38, 48):
                colour, codes = (more, codes) if more else self._split_colour(codes)
                colour = [int(number[:5] or 0) for number in colour]
                if len(colour) == 2 and colour[0] == 5:
                    name = str(colour[1])
                elif len(colour) in (4, 5) and colour[0] == 2:
                    name = "#%02x%02x%02x" % tuple(colour[-3:])
                else:
                    self.unknown.append(sequence)
                    return
                self._paint(style, "fg=" if code == 38 else "bg=", name)
            elif code == 0 or code in OFF:
                style -= OFF.get(code, set(style))
            elif code in ON:
                style.add(ON[code])
                style.difference_update(["underline"] if code == 4 and more == ["0"] else [])
            elif code % 10 < 8 and code // 10 in (3, 4, 9, 10):
                self._paint(style, "fg=" if code // 10 in (3, 9) else "bg=",
                            str(code % 10 + 8 * (code >= 90)))
            elif code in (39, 49):
                self._paint(style, "fg=" if code == 39 else "bg=")
            else:
                self.unknown.append(sequence)
                return
        self._style = frozenset(style)

    @staticmethod
    def _split_colour(codes):
        length = 4 if codes[:1] == ["2"] else 2
        return codes[:length], codes[length:]

    @staticmethod
    def _paint(style, kind, name=""):
        style.difference_update([other for other in style if other.startswith(kind)])
        style.update([kind + name] if name else [])

    def _reply(self, text):
        self.replies += text.encode("ascii")
        if self.on_reply:
            self.on_reply(text.encode("ascii"))

    def _report(self, numbers):
        if numbers[0] not in (5, 6):
            return False
        self._reply("\x1b[0n" if numbers[0] == 5 else f"\x1b[{self._row + 1};{self._column + 1}R")

    def _report_mode(self, numbers):
        mode = numbers[0]
        self._reply(f"\x1b[?{mode};{0 if mode not in MODES else 1 if mode in self.modes else 2}$y")

    def _window(self, numbers):
        # 22 and 23 keep the title and take it back.
        if numbers[0] not in (18, 22, 23):
            return False
        if numbers[0] == 18:
            self._reply(f"\x1b[8;{self.rows};{self.columns}t")

    # Returns False for what is unknown.
    CSI = {
        "A": lambda self, numbers: self._vertical(-max(numbers[0], 1)),
        "B": lambda self, numbers: self._vertical(max(numbers[0], 1)),
        "C": lambda self, numbers: self._move(self._row, self._column + max(numbers[0], 1)),
        "D": lambda self, numbers: self._move(self._row, self._column - max(numbers[0], 1)),
        "E": lambda self, numbers: (self._vertical(max(numbers[0], 1)), self._move(self._row, 0)),
        "F": lambda self, numbers: (self._vertical(-max(numbers[0], 1)), self._move(self._row, 0)),
        "G": lambda self, numbers: self._move(self._row, numbers[0] - 1),
        "d": lambda self, numbers: self._move(numbers[0] - 1, self._column),
        "H": lambda self, numbers: self._move(numbers[0] - 1, (numbers[1:] or [0])[0] - 1),
        "J": _erase_screen, "K": _erase_line, "X": _erase_chars, "m": _sgr, "r": _region,
        "n": _report, "t": _window,
        "L": lambda self, numbers: self._lines(-max(numbers[0], 1)),
        "M": lambda self, numbers: self._lines(max(numbers[0], 1)),
        "P": lambda self, numbers: self._shift(-max(numbers[0], 1)),
        "@": lambda self, numbers: self._shift(max(numbers[0], 1)),
        "S": lambda self, numbers: self._scroll(self._top, max(numbers[0], 1), keep=True),
        "T": lambda self, numbers: len(numbers) == 1
        and self._scroll(self._top, -max(numbers[0], 1)),
        "s": lambda self, numbers: self._save(), "u": lambda self, numbers: self._restore(),
        "c": lambda self, numbers: self._reply("\x1b[?62;22c"),
        ">c": lambda self, numbers: self._reply("\x1b[>41;370;0c"),
        "?h": lambda self, numbers: self._set_modes(numbers, True),
        "?l": lambda self, numbers: self._set_modes(numbers, False),
        "?$p": _report_mode, ">m": lambda self, numbers: None,      # modifyOtherKeys
        " q": lambda self, numbers: None,      # the cursor's shape
    }
    CSI["f"] = CSI["H"]
    ESC = {
        "7": _save, "8": _restore, "D": _line_feed, "M": _reverse_line_feed, "c": _reset,
        "E": lambda self: (self._line_feed(), self._move(self._row, 0)),
        "=": lambda self: None, ">": lambda self: None, "(B": lambda self: None,
        ")B": lambda self: None,
    }
