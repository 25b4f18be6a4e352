"""Colours, type and spacing: Streamlit's theme options, and the style sheet of the HTML tables.

One accent. Series colours are those of Okabe and Ito (2008), told apart with every common colour blindness; the dark
theme takes their lighter members. `light-dark()` follows the `color-scheme` that Streamlit sets for the chosen theme.
"""

from typing import Any

ACCENT = ("#0B62A8", "#6CB6FF")
"""(light, dark). Both at least 4.5:1 on their backgrounds (WCAG 2.2, success criterion 1.4.3)."""
_SERIES = (
    ["#0072B2", "#D55E00", "#00805D", "#B8528B", "#8A6D00", "#4A5763"],
    ["#6CB6FF", "#F0A14A", "#3CCFA4", "#E3A4C4", "#F0E442", "#C3CCD6"],
)
COLOURS = len(_SERIES[0])
"""Checkpoint n has colour (n - 1) modulo this many, on every page: the iterations of a run are told apart."""
_DOTS = "\n".join(
    f".h-root .dot.c{place} {{ background: light-dark({light}, {dark}); }}"
    for place, (light, dark) in enumerate(zip(*_SERIES, strict=True))
)


def options() -> dict[str, Any]:
    """Streamlit options of both themes; without `theme.base` the browser's preference decides."""
    light = {
        "primaryColor": ACCENT[0],
        "linkColor": ACCENT[0],
        "backgroundColor": "#FFFFFF",
        "secondaryBackgroundColor": "#F3F5F8",
        "textColor": "#1B2733",
        "borderColor": "#DBE1E8",
        "chartCategoricalColors": _SERIES[0],
    }
    dark = {
        "primaryColor": ACCENT[1],
        "linkColor": ACCENT[1],
        "backgroundColor": "#10151C",
        "secondaryBackgroundColor": "#1A212B",
        "textColor": "#E4EAF1",
        "borderColor": "#2C3644",
        "chartCategoricalColors": _SERIES[1],
    }
    shared = {"theme.baseRadius": "6px", "theme.paddingTop": "1.5rem", "theme.headingFontWeights": [650, 600, 600]}
    shared["theme.headingFontSizes"] = ["1.875rem", "1.375rem", "1.125rem"]
    return (
        shared
        | {f"theme.light.{name}": value for name, value in light.items()}
        | {f"theme.dark.{name}": value for name, value in dark.items()}
    )


STYLE = f"""<style>
.h-root {{
  --accent: light-dark({ACCENT[0]}, {ACCENT[1]});
  --muted: light-dark(#56636F, #A3B0BE);
  --line: light-dark(#DBE1E8, #2C3644);
  --soft: light-dark(#F3F5F8, #1A212B);
  --page: light-dark(#FFFFFF, #10151C);
  --warn: light-dark(#8A4B00, #F0B45E);
  --bad: light-dark(#B3261E, #FF9A8F);
  --good: light-dark(#00694B, #4FD3AB);
  font-size: 0.875rem; line-height: 1.25rem; font-variant-numeric: tabular-nums lining-nums;
}}
.h-scroll {{ overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }}
.h-scroll:focus-visible {{ outline: 2px solid var(--accent); outline-offset: 2px; }}
.h-root table {{ border-collapse: separate; border-spacing: 0; width: 100%; margin: 0; }}
.h-root th, .h-root td {{ padding: 0.5rem 0.75rem; border: 0; border-bottom: 1px solid var(--line); vertical-align: top;
  text-align: left; white-space: nowrap; color: inherit; }}
.h-root tbody:last-child tr:last-child > * {{ border-bottom: 0; }}
.h-root thead th {{ font-weight: 600; background: var(--soft); vertical-align: top; }}
.h-root thead th small {{ display: block; font-weight: 400; font-size: 0.75rem; line-height: 1rem; color: var(--muted); }}
.h-root th.n, .h-root td.n, .h-root table.board td {{ text-align: right; }}
.h-root td.wide {{ white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }}
.h-root th.sorted {{ box-shadow: inset 0 -2px 0 var(--accent); }}
.h-root tbody tr:hover > td, .h-root tbody tr:hover > th.name {{ background: var(--soft); }}
.h-root th.name {{ position: sticky; left: 0; background: var(--page); font-weight: 600; z-index: 1; white-space: normal;
  overflow-wrap: anywhere; min-width: 8.5rem; max-width: 19rem; }}
.h-root thead th.name {{ background: var(--soft); z-index: 2; }}
.h-root th.name small, .h-root td small {{ display: block; font-weight: 400; font-size: 0.75rem; line-height: 1rem;
  color: var(--muted); }}
.h-root th.group {{ background: var(--soft); font-weight: 400; font-size: 0.8125rem; padding: 0.375rem 0.75rem; }}
.h-root th.group b {{ font-weight: 600; }}
.h-root th.group span {{ position: sticky; left: 0.75rem; }}
.h-root .v, .h-root td > b {{ font-weight: 600; }}
.h-root .i {{ font-size: 0.75rem; line-height: 1rem; color: var(--muted); display: block; }}
.h-root sup {{ color: var(--muted); font-weight: 400; margin-left: 1px; line-height: 0; }}
.h-root .bar {{ display: block; position: relative; height: 3px; margin: 0.25rem 0 0.0625rem; min-width: 5.5rem;
  border-radius: 2px; background: var(--line); }}
.h-root .bar::before {{ content: ""; position: absolute; top: 0; bottom: 0; left: var(--l); width: var(--w);
  border-radius: 2px; background: var(--accent); opacity: 0.45; }}
.h-root .bar::after {{ content: ""; position: absolute; top: -2px; left: var(--m); width: 3px; height: 7px;
  margin-left: -1.5px; border-radius: 1px; background: var(--accent); }}
.h-root .absent {{ color: var(--muted); }}
.h-root .warn {{ color: var(--warn); }}
.h-root .bad {{ color: var(--bad); }}
.h-root .good {{ color: var(--good); }}
.h-root .chip {{ display: inline-block; padding: 0 0.4rem; border: 1px solid currentColor; border-radius: 999px;
  font-size: 0.75rem; color: var(--warn); }}
.h-root .answer {{ white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); border-radius: 6px;
  padding: 0.75rem 1rem; line-height: 1.4rem; }}
.h-root .answer .only {{ background: light-dark(#FFE9B8, #5A4310); border-radius: 2px; text-decoration: underline;
  text-decoration-color: var(--warn); text-underline-offset: 2px; }}
.h-root .chip.best {{ color: var(--good); margin-left: 0.35rem; }}
.h-root .dot {{ display: inline-block; width: 0.5rem; height: 0.5rem; border-radius: 50%; margin-right: 0.35rem; }}
{_DOTS}
.h-root .lineage {{ padding: 0.75rem; }}
.h-root .lineage ul {{ list-style: none; margin: 0; padding: 0; }}
.h-root .lineage > ul {{ display: flex; gap: 2rem; width: max-content; }}
.h-root .lineage > ul > li {{ position: relative; margin: 0; align-self: center; }}
.h-root .lineage > ul > li + li::before {{ content: "→"; position: absolute; left: -1.5rem; top: calc(50% - 0.7rem);
  color: var(--muted); }}
.h-root .lineage li li {{ border: 1px solid var(--line); border-radius: 6px; padding: 0.4rem 0.7rem; margin: 0.3rem 0;
  max-width: 17rem; overflow-wrap: anywhere; font-size: inherit; font-weight: 600; }}
.h-root .lineage small {{ display: block; font-weight: 400; font-size: 0.75rem; line-height: 1rem; color: var(--muted); }}
.h-root .fill {{ display: block; height: 4px; width: 8rem; border-radius: 2px; background: var(--line); margin-top: 0.25rem; }}
.h-root .fill i {{ display: block; height: 100%; border-radius: 2px; background: var(--accent); }}
.h-root .split {{ display: flex; height: 6px; width: 7rem; margin: 0.35rem 0 0.25rem auto; overflow: hidden; }}
.h-root .split i {{ display: block; height: 100%; background: var(--line); }}
.h-root .split i.good {{ background: var(--good); }}
.h-root .split i.bad {{ background: var(--bad); }}
.h-root a {{ color: var(--accent); text-decoration: underline; text-underline-offset: 2px; }}
.h-root td > b a, .h-root th.name > a, .h-root .lineage a {{ color: inherit; text-decoration-color: var(--line); }}
.h-root td > b a:hover, .h-root th.name > a:hover, .h-root .lineage a:hover {{
  color: var(--accent); text-decoration-color: currentColor; }}
.h-root ul.notes {{ list-style: none; margin: 0.75rem 0 0; padding: 0; font-size: 0.8125rem; color: var(--muted); }}
.h-root ul.notes li {{ margin: 0 0 0.15rem; font-size: inherit; }}
.h-root h3 {{ font-size: 1rem; font-weight: 600; margin: 0; padding: 0; letter-spacing: 0; }}
.h-root h3 small {{ display: block; font-size: 0.8125rem; font-weight: 400; color: var(--muted); }}
.h-root h3.chart small {{ min-height: 2.5rem; }} /* charts of a row stand level, whether their notes take one line or two */
.h-root dl {{ display: flex; flex-wrap: wrap; gap: 0.5rem 2.25rem; margin: 0; padding: 0; }}
.h-root dt {{ font-size: 0.75rem; color: var(--muted); font-weight: 400; }}
.h-root dd {{ margin: 0; padding: 0; font-size: 1.125rem; font-weight: 600; overflow-wrap: anywhere; }}
.h-root dd small {{ display: block; font-size: 0.8125rem; font-weight: 400; color: var(--muted); }}
/* Streamlit's own are below a contrast of 4.5 : 1. */
[data-testid=stCaptionContainer], [data-testid=stCaptionContainer] * {{ opacity: 1 !important; }}
[data-testid=stCaptionContainer] {{ color: light-dark(#56636F, #A3B0BE); }}
[data-testid=stCode] .token {{ color: inherit !important; }}
@media (max-width: 640px) {{
  .h-root th, .h-root td {{ padding: 0.4rem 0.5rem; }}
  .h-root th.name {{ min-width: 6.5rem; max-width: 9.5rem; }}
  .h-root td.wide {{ min-width: 10rem; }}
}}
</style>"""
