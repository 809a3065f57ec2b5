"""The strokes that architecture drawings are made of."""

from __future__ import annotations

from html import escape

WIDTH = 400
# The box around what is repeated; its copies need room at the right.
LEFT, RIGHT = 14.0, WIDTH - 26.0
CENTER = (LEFT + RIGHT) / 2


class Canvas:
    """SVG elements in the order of painting."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box", radius: float = 6) -> None:
        """A rectangle by its left upper corner."""
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"/>'
        )

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> None:
        """A line of text; y is its base line."""
        name = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text{name} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, *points: tuple[float, float], arrow: bool = False, kind: str = "line") -> None:
        """A line through points, with an arrow head at its end."""
        path = " ".join(f"{'L' if index else 'M'}{x:g} {y:g}" for index, (x, y) in enumerate(points))
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.parts.append(f'<path class="{kind}" d="{path}"{end}/>')

    def plus(self, x: float, y: float) -> None:
        """A sum."""
        self.parts.append(f'<circle class="plus" cx="{x:g}" cy="{y:g}" r="9"/>')
        self.line((x - 4.5, y), (x + 4.5, y))
        self.line((x, y - 4.5), (x, y + 4.5))

    def dot(self, x: float, y: float) -> None:
        """A place where a line branches."""
        self.parts.append(f'<circle class="dot" cx="{x:g}" cy="{y:g}" r="2.5"/>')

    def node(self, x: float, y: float, width: float, title: str, note: str = "", kind: str = "box") -> float:
        """A box with a title and a note, centered on x; returns its lower edge."""
        height = 44.0 if note else 30.0
        self.box(x - width / 2, y, width, height, kind)
        self.text(x, y + (18 if note else 20), title)
        if note:
            self.text(x, y + 35, note, "note")
        return y + height

    def frame(self, y: float, height: float, title: str, badge: str, copies: int) -> None:
        """The box around what is repeated; copies lie behind it."""
        for copy in range(min(copies, 2), 0, -1):
            self.box(LEFT + 6 * copy, y + 6 * copy, RIGHT - LEFT, height, "copy", 10)
        self.box(LEFT, y, RIGHT - LEFT, height, "frame", 10)
        self.text(LEFT + 14, y + 24, title, "title", "start")
        if badge:
            width = 16 + 7.2 * len(badge)
            self.box(RIGHT - 12 - width, y + 9, width, 22, "badge", 11)
            self.text(RIGHT - 12 - width / 2, y + 24, badge, "badge-text")
