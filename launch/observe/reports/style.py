"""The style of the pages: light and dark, from a phone to print. Pure."""

from __future__ import annotations

COLOURS = 8  # of lines and bars: classes c0 to c7
_DASHES = ("none", "7 3", "2 3", "9 3 2 3", "none", "7 3", "2 3", "9 3 2 3")
_STYLE = """
:root { --ink: #1f2933; --soft: #52606d; --rule: #d9e2ec; --back: #fff; --tile: #f3f6f9; --bad: #b42318;
  --c0: #2b66ad; --c1: #c2410c; --c2: #8a6100; --c3: #1d7a5a; --c4: #7446b3; --c5: #007a8f; --c6: #a8326f;
  --c7: #5b6636 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #a9b5c1; --rule: #37434f; --back: #12181e;
  --tile: #1c252e; --bad: #ff9b8f; --c0: #7db4f0; --c1: #ff9c6b; --c2: #e6bd56; --c3: #6fd0ab; --c4: #c0a1f2;
  --c5: #5fcadb; --c6: #f08dbf; --c7: #b9c788 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 1180px;
  margin: 0 auto; padding: 1.2rem 1rem 3rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; margin: .2rem 0 .4rem }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
p { max-width: 46rem; margin: .4rem 0 }
a { color: var(--c0) }
.soft, figcaption, footer { color: var(--soft) }
.bad { color: var(--bad) }
.noticed { border-left: 4px solid var(--c1); padding: .2rem 0 .2rem 1.6rem; margin: .6rem 0; max-width: 46rem }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: .5rem 0; margin: .8rem 0 0;
  border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: .6rem; margin: .9rem 0 }
.tiles div { background: var(--tile); border-radius: 6px; padding: .5rem .7rem; print-color-adjust: exact }
.tiles dt { color: var(--soft); font-size: .85rem }
.tiles dd { margin: 0; font-size: 1.2rem; font-weight: 600 }
.tiles small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft) }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 1.4rem }
figure { margin: .5rem 0 0; break-inside: avoid; max-width: 580px }
figure h3 { margin: 0 }
figcaption { font-size: .85rem }
svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; list-style: none; padding: 0; margin: .2rem 0;
  font-size: .85rem }
.legend svg { display: inline-block; width: 26px; height: 10px; margin-right: .35rem }
svg text { fill: var(--soft) }
svg .grid { stroke: var(--rule); stroke-width: 1 }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round }
svg .raw { opacity: .3; stroke-width: 1 }
svg .strong { fill: var(--ink) }
svg .bar, svg .dot { stroke: none; print-color-adjust: exact }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0 }
th, td { text-align: left; vertical-align: top; padding: .22rem .9rem .22rem 0; border-bottom: 1px solid var(--rule) }
thead th { color: var(--soft); font-weight: 600; font-size: .85rem }
tbody th { font-weight: 500 }
th { overflow-wrap: break-word }
.numbers td, .numbers thead th + th { text-align: right; white-space: nowrap }
.facts tbody th { min-width: 8.5rem; color: var(--soft) }
td.changed { font-weight: 600 }
summary { cursor: pointer; padding: .3rem 0 }
footer { margin-top: 3rem; font-size: .85rem }
@media print {
  body { max-width: none; font-size: 11px }
  nav { display: none }
  .scroll { overflow: visible }
  details::details-content { content-visibility: visible; block-size: auto }
  .charts { grid-template-columns: 1fr 1fr }
}
"""


def style() -> str:
    """The style sheet."""
    return _STYLE + "\n".join(
        f"svg .line.c{i} {{ stroke: var(--c{i}); stroke-dasharray: {dash} }}\n"
        f"svg .bar.c{i}, svg .dot.c{i} {{ fill: var(--c{i}) }}"
        for i, dash in enumerate(_DASHES)
    )
