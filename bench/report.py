"""What bench/fanout.py shows of its rows: the table, the page of results, and the plot as SVG. Rows
in, text out."""

import math

# A part of the time: a driver that is busier, or waits for a core, may be the bottleneck.
BUSY = 0.85
# Title, key and format of each column; one without a figure is left out.
COLUMNS = [
    ("workload", "workload", "{}"), ("members", "members", "{:,}"), ("server", "server", "{}"),
    ("deliveries/s", "rate", "{:,.0f}"), ("of bare loop", "of_bare", "{:.2f}"),
    ("of C loop", "of_c", "{:.2f}"),
    ("p50 ms", "p50", "{:.2f}"), ("p99 ms", "p99", "{:.2f}"), ("max ms", "max", "{:.2f}"),
    ("CPU us/delivery", "cpu", "{:.2f}"), ("CPU", "core", "{:.2%}"),
    ("wake-ups/s", "wakeups", "{:.0f}"),
    ("KB/member", "memory", "{:.1f}"), ("joined s", "joined", "{:.2f}"),
    ("driver", "driver", "{:.0%}"),
    ("others", "others", "{:.0%}"), ("lost/doubled/disordered", "wrong", "{}")]
NOTES = f"""\
CPU is the server's, in cores. "driver" is the share of the time in which the process that drove
worked or waited for a core: over {BUSY:.0%} the rate is marked ">", and what is compared with it
"~", as the driver may be what was measured. "others" is what other programs took of the machine:
the more, the less a row says. Members acknowledge late (by 32 frames or 0.25 s) unless it says
otherwise, but not to ngIRCd, asyncio and the two loops, which know no ACKs. The window is how
many messages are under way until every member has heard them. Texts have 64 bytes unless it says
otherwise. A client's rate is messages a second."""
COLOURS = ["#1f5fa8", "#d1642a", "#3a8f57", "#8a5bb0", "#8c8c8c", "#b03a5b", "#e0a37c",
           "#7fa8d8"]


# --- The table and the page ---

def cell(row, key, form):
    """One figure as text."""
    value = row.get(key)
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "-"
    bound = row.get("driver" if key == "rate" else f"{key}_driver", 0) > BUSY
    return (">" if key == "rate" else "~") * bound + form.format(value)


def figures(row):
    """Title and text of what a row has."""
    return [(title, cell(row, key, form)) for title, key,
            form in COLUMNS if cell(row, key, form) != "-"]


def table(rows):
    """Markdown, aligned, so that it reads as it is."""
    lines = [[cell(row, key, form) for _, key, form in COLUMNS] for row in rows]
    used = [i for i in range(len(COLUMNS)) if any(line[i] != "-" for line in lines)]
    lines = [[COLUMNS[i][0] for i in used]] + [[line[i] for i in used] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(value.ljust(width) for value, width in zip(line, widths))
                     + " |" for line in lines)


def page(rows, machine, plot):
    """The page of results."""
    wrong = [f"{row['workload']}, {row['server']}: {row.get('error') or row['wrong']}"
             for row in rows if row["bad"]]
    facts = "\n".join(f"- {key}: {value}" for key, value in machine.items())
    return "\n\n".join([
        "# Results of the benchmark",
        "This page was written by the command below; nothing in it was typed.", facts,
        "Failed, lost, doubled or out of order: " + ("; ".join(wrong) or "nothing, in any row")
        + ".",
        *([f"![The same as a plot]({plot})"] if plot else []), table(rows), NOTES]) + "\n"


# --- The plot ---

def tag(name, text="", **attributes):
    """An element of the SVG."""
    inside = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in attributes.items())
    return f"<{name}{inside}>{text}</{name}>"


def label(x, y, text, anchor="start", **attributes):
    """A text in the SVG."""
    text = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return tag("text", text, x=x, y=y, text_anchor=anchor, **attributes)


def bars(rows, y):
    """Deliveries a second of each server in the workloads that several have; returns the elements
    and where they end."""
    shown = [row for row in rows if "window" in row and "rate" in row and "curve" not in row]
    names, groups, parts = list(dict.fromkeys(row["server"] for row in shown)), {}, []
    for row in shown:
        groups.setdefault(f"{row['workload']}, {row['members']:,} members", []).append(row)
    for title, group in groups.items():
        if len(group) == 1:
            continue
        parts.append(label(20, y, title, font_weight="bold"))
        most = max(1, *(row["rate"] for row in group))
        for row in group:
            y, width = y + 17, round(500 * row["rate"] / most, 1)
            parts += [label(100, y, row["server"], "end"),
                      label(114 + width, y, cell(row, "rate", "{:,.0f}") + "/s"),
                      tag("rect", x=108, y=y - 11, width=width, height=13,
                          fill=COLOURS[names.index(row["server"]) % len(COLOURS)])]
        y += 28
    return parts, y


def panel(x, y, title, across, curves):
    """A diagram with both axes logarithmic; `curves` is a dict: name -> points."""
    width, height, parts = 300, 190, [label(x, y - 12, title, font_weight="bold"),
                                      label(x + 150, y + 222, across, "middle")]
    xs, ys = zip(*(point for points in curves.values() for point in points))
    left, right = math.log10(min(xs)), math.log10(max(xs))
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))

    def place(at, value):
        return (round(x + (math.log10(at) - left) / ((right - left) or 1) * width, 1),
                round(y + height - (math.log10(value) - low) / ((high - low) or 1) * height, 1))
    for power in range(low, high + 1):
        line = place(min(xs), 10.0 ** power)[1]
        parts += [tag("line", x1=x, x2=x + width, y1=line, y2=line, stroke="#ddd"),
                  label(x - 6, line + 4, f"{10.0 ** power:,.10g}", "end")]
    parts += [label(place(at, min(ys))[0], y + height + 15, f"{at:,}", "middle", font_size=9)
              for at in sorted(set(xs))]
    for number, (name, points) in enumerate(curves.items()):
        spots, colour = [place(*point) for point in points], COLOURS[number]
        parts += [tag("polyline", points=" ".join(f"{x},{y}" for x, y in spots), fill="none",
                      stroke=colour, stroke_width=2),
                  label(x + width, y + 12 + 14 * number, name, "end", fill=colour),
                  *(tag("circle", cx=x, cy=y, r=3, fill=colour) for x, y in spots)]
    return parts


def svg(rows):
    """The plot: bars for the servers, then the curves."""
    parts, y = bars(rows, 50)
    parts.insert(0, label(20, 24, "Deliveries a second", font_size=16))
    for title in dict.fromkeys(row["curve"] for row in rows if "curve" in row):
        for column, key in enumerate(("rate", "p50", "cpu")):
            curves = {}
            for row in rows:
                if row.get("curve") == title and row.get(key, 0) > 0:
                    curves.setdefault(f"window {row['window']}", []).append((row["at"], row[key]))
            if curves:
                parts += panel(82 + 400 * column, y + 34,
                               next(name for name, its, _ in COLUMNS if its == key), title, curves)
        y += 280
    return tag("svg", "\n".join([tag("rect", width=1240, height=y, fill="white"), *parts]),
               width=1240, height=y,
               xmlns="http://www.w3.org/2000/svg", font_family="sans-serif", font_size=12) + "\n"
