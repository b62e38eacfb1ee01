"""Makes the README's pictures from the real programs: `python tests/pictures.py` writes pictures/.

A server, two bots that talk, the page in Chromium on a desk and on a phone, and the terminal client
on a pty, whose cells are drawn as a page. POSIX, with a Chromium.
"""

import sys

import browser as driver
import harness
import page
from program import Program

FOLDER = harness.ROOT / "pictures"
COLOURS = ["#222", "#f77", "#7d7", "#dc6", "#7af", "#d8f", "#6dd", "#ddd"]
TALK = [("bob", "is the build green, ann?"),
        ("carol", "nearly: one test left, see http://192.168.1.20/build?id=7 and `make test`"),
        ("bob", "```\nfor host in hosts:\n    ping(host)\n```"),
        ("carol", "> bob: is the build green, ann?\nI look at it while the coffee is made"),
        ("bob", "/me makes the coffee")]


def style_of(cell, reverse):
    """The CSS of a terminal's cell."""
    front, back, rules = "#ddd", "#181818", []
    for each in cell.style:
        if each.startswith(("fg=", "bg=")) and each[3:].isdigit():
            colour = COLOURS[int(each[3:]) % 8]
            front, back = (colour, back) if each[0] == "f" else (front, colour)
    if "reverse" in cell.style or reverse:
        front, back = back, front
    if "bold" in cell.style:
        rules.append("font-weight:bold")
    if "dim" in cell.style:
        rules.append("opacity:.65")
    return ";".join([f"color:{front}", f"background:{back}", *rules])


def cells_of(terminal):
    """The terminal's rows, each a list of [text, css] for cells of one style."""
    rows = []
    for row in range(terminal.rows):
        runs = []
        for column in range(terminal.columns):
            cell = terminal.cell(row, column)
            css = style_of(cell, (row, column) == terminal.cursor)
            if runs and runs[-1][1] == css:
                runs[-1][0] += cell.text
            else:
                runs.append([cell.text, css])
        rows.append(runs)
    return rows


def draw(tab, rows, path):
    """The rows of a terminal as a picture."""
    tab.call("Page.navigate", url="about:blank")
    tab.wait("location.href === 'about:blank' && document.body")
    size = tab.js("""(rows => { document.body.style.cssText = "margin:0;width:max-content;" +
        "background:#181818;padding:12px;font:15px/19px DejaVu Sans Mono,monospace;white-space:pre";
        document.body.replaceChildren(...rows.map(runs => {
            const row = document.createElement("div");
            row.style.height = "19px";
            row.append(...runs.map(([text, css]) => { const run = document.createElement("span");
                run.style.cssText = css; run.textContent = text; return run; })); return row; }));
        return [document.body.offsetWidth, 19 * rows.length + 24]; })"""
                  + f"({driver.json.dumps(rows)})")
    tab.size(*size)
    tab.screenshot(path)


def make():
    """Write the three pictures; return their bytes together."""
    sys.path.insert(0, str(harness.ROOT))
    from chat_client import ChatClient
    FOLDER.mkdir(exist_ok=True)
    browser = driver.Browser()
    with harness.serving("--rate", "0") as server:
        bots = {name: ChatClient("127.0.0.1", server.port, name) for name in ("bob", "carol")}
        for bot in bots.values():
            bot.connect()
        command = [sys.executable, "chat_client.py", "127.0.0.1", str(server.port), "-n", "dora"]
        tab = browser.tab(1120, 700)
        tab.open(f"http://127.0.0.1:{server.port}/")
        page.join(tab, "ann")
        with Program(command, rows=18, columns=76, cwd=str(harness.ROOT)) as terminal:
            terminal.wait_for("connected")
            for name, text in TALK:
                bots[name].say(text)
                tab.wait("view.rows.at(-1)?.from === " + driver.json.dumps(name))
            page.say(tab, "then we can ship it: 日本語, too")
            tab.wait(page.row("then we can ship it: 日本語, too", ".own"))
            bots["bob"].say("psst, the cake is in the lab", "ann")
            bots["carol"].say("ann: well done!")
            tab.wait("document.querySelectorAll('#log .mention').length > 1 && "
                     "document.querySelector('.own .state').textContent === 'heard by all'")
            terminal.type("see you at the ")
            terminal.wait_for("see you at the")
            tab.screenshot(FOLDER / "page.png")
            tab.size(360, 640)
            tab.js("speakTo(view.person('bob')); setDraft('where exactly?')")
            tab.wait("innerWidth === 360 && nearEnd()")
            tab.screenshot(FOLDER / "phone.png")
            rows = cells_of(terminal.terminal)
        draw(tab, rows, FOLDER / "terminal.png")
        for bot in bots.values():
            bot.close()
    browser.close()
    return sum(path.stat().st_size for path in FOLDER.glob("*.png"))


if __name__ == "__main__":
    print(f"{make()} bytes in {FOLDER}")
