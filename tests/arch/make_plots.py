"""Draw the plots of docs/performance.md from its own tables, so that both say the same: python tests/arch/make_plots.py."""

import math
from pathlib import Path
from xml.sax.saxutils import escape

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "performance.md"
WIDTH, ROW, LEFT = 760, 22, 270
COLOURS = ("#2b7a78", "#c98a00", "#7d5ba6", "#c0392b")
STYLE = "text{font:13px system-ui,sans-serif;fill:#666}.axis{stroke:#8888;stroke-width:1}.one{stroke:#888;stroke-dasharray:4 3}"


def tables(text):
    """Yield (columns, rows) of each table of a page."""
    block = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append([cell.strip() for cell in line.strip("|").split("|")])
        elif block:
            yield block[0], block[2:]
            block = []


def column(columns, rows, name):
    at = columns.index(name)
    return [float(row[at].split()[0]) for row in rows]


def drawing(height, parts):
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def bars(names, values):
    """Ratios on a logarithmic axis: to the right of the dashed line kmsfs is faster."""
    low, high = min(0.25, *values), max(4.0, *values)
    place = lambda value: LEFT + (math.log(value) - math.log(low)) / (math.log(high) - math.log(low)) * (WIDTH - LEFT - 60)  # noqa: E731
    one, parts = place(1.0), []
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        y, end = 8 + number * ROW, place(value)
        parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="{min(one, end):.1f}" y="{y + 2}" width="{abs(end - one):.1f}" height="{ROW - 8}" fill="{COLOURS[0] if value >= 1 else COLOURS[3]}"/>'
        )
        parts.append(f'<text x="{max(one, end) + 5:.1f}" y="{y + 13}">{value:g}</text>')
    bottom = 8 + len(names) * ROW
    parts.append(f'<line class="one" x1="{one:.1f}" y1="4" x2="{one:.1f}" y2="{bottom}"/>')
    return drawing(bottom + 8, parts)


def lines(series, unit, place, marks):
    """Values over numbers; `series` is (name, numbers, values), `place` gives 0 to 1 for a number, `marks` are (number, text) of the axis."""
    height, top, left, bottom = 300, 16, 56, 260
    most = -(-max(max(values) for _, _, values in series) // 20) * 20
    x = lambda number: left + place(number) * (WIDTH - left - 50)  # noqa: E731
    y = lambda value: bottom - value / most * (bottom - top)  # noqa: E731
    parts = [f'<line class="axis" x1="{left}" y1="{bottom}" x2="{WIDTH - 20}" y2="{bottom}"/>', f'<line class="axis" x1="{left}" y1="{top}" x2="{left}" y2="{bottom}"/>']
    for number, text in marks:
        parts.append(f'<text x="{x(number):.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    for step in range(5):
        value = most * step / 4
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.0f}</text>')
    for number, (name, counts, values) in enumerate(series):
        points = " ".join(f"{x(count):.1f},{y(value):.1f}" for count, value in zip(counts, values, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[number]}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 12}" y="{bottom - 84 + number * 18}" style="fill:{COLOURS[number]}">{escape(name)}, {unit}</text>')
    return drawing(height, parts)


def powers(series):
    """A logarithmic axis for numbers from 1 on."""
    last = math.log10(max(max(numbers) for _, numbers, _ in series))
    return lambda number: math.log10(max(number, 1)) / last, [(10**power, f"{10**power:,}") for power in range(1, int(last) + 1)]


def plots():
    """Return the plots by name."""
    found = list(tables(PAGE.read_text()))
    by_first = {}
    for columns, rows in found:
        by_first.setdefault(columns[0], (columns, rows))
    columns, rows = by_first["workload"]
    made = {"mount.svg": bars([row[0] for row in rows], column(columns, rows, "kmsfs / gocryptfs"))}
    series = []
    for first, name, label in (
        ("keys", "Decrypt us", "Decrypt, by keys"), ("grants", "Decrypt us", "Decrypt, by grants on its key"),
        ("parameters", "GetParameter us", "GetParameter, by parameters"), ("statements", "Decrypt us", "Decrypt, by policy statements"),
    ):  # fmt: skip
        columns, rows = by_first[first]
        series.append((label, [float(row[0].split()[0].replace(",", "")) for row in rows], column(columns, rows, name)))
    made["growth.svg"] = lines(series, "µs", *powers(series))
    for first, name, shown, unit in (
        ("MiB", "size.svg", (("fsync of one 4 KiB write us", "fsync of one 4 KiB write, µs"), ("mount MiB", "memory of the mount, MiB")), "by MiB of a file"),
        ("writers", "writers.svg", (("records /s", "records a second"),), "by writers at once"),
        ("files", "files.svg", (("create /s", "creates a second"), ("list and stat cold /s", "entries listed a second"), ("lookup and stat /s", "lookups a second")), "by files of a directory"),
    ):  # fmt: skip
        columns, rows = by_first[first]
        found = [(label, column(columns, rows, first), column(columns, rows, at)) for at, label in shown]
        made[name] = lines(found, unit, *powers(found))
    columns, rows = by_first["minute"]
    minutes = column(columns, rows, "minute")
    held = [(name, minutes, column(columns, rows, f"{name} MiB")) for name in ("kmsd", "first mount", "second mount")]
    made["soak.svg"] = lines(held, "MiB, by minutes", lambda minute: minute / minutes[-1], [(at, f"{at:g}") for at in minutes if at % 5 == 0])
    return made


if __name__ == "__main__":
    for name, text in plots().items():
        (DOCS / "plots").mkdir(exist_ok=True)
        (DOCS / "plots" / name).write_text(text)
