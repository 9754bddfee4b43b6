"""The style sheet of report.html."""

CSS = """
:root { --ground: #ffffff; --panel: #f5f6f8; --ink: #1c2230; --soft: #5b6474; --line: #dfe3ea; --accent: #2a7fd4; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171d; --panel: #1d212a; --ink: #e5e8ee; --soft: #9aa3b2; --line: #313744; --accent: #62a8ee; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; margin: 0 0 14px; }
h3 { font-size: 1rem; margin: 20px 0 10px; }
h3 small { font-weight: normal; color: var(--soft); margin-left: 6px; }
section { margin-top: 48px; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.92em; }
.lead { margin: 0 0 12px; color: var(--soft); font-size: 1.05rem; }
.facts { display: flex; flex-wrap: wrap; gap: 6px; margin: 0; }
.facts span { background: var(--panel); border-radius: 99px; padding: 2px 12px; font-size: 0.85rem;
  overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin-top: 28px; }
.tiles div { background: var(--panel); border-radius: 10px; padding: 14px 18px; }
.tiles span, .tiles small { display: block; color: var(--soft); font-size: 0.85rem; }
.tiles strong { display: block; font-size: 2rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
.results { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.results th, .results td { padding: 7px 10px; text-align: right; white-space: nowrap; }
.results thead th { font-weight: 600; font-size: 0.85rem; color: var(--soft); }
.results thead .group { text-align: center; color: var(--ink); border-bottom: 1px solid var(--line); }
.results tbody tr { border-top: 1px solid var(--line); }
.results tbody th { text-align: left; font-weight: normal; white-space: normal; min-width: 210px; }
.results tbody tr:first-child { font-weight: 600; }
.results tbody tr:first-child th { font-weight: 600; }
.results td:nth-child(7), .results thead tr:last-child th:nth-child(7) { border-left: 1px solid var(--line); }
.results .second { color: var(--soft); border-top: 0; }
.results .second th { padding-left: 26px; }
.notes { margin: 14px 0 0; padding-left: 18px; color: var(--soft); font-size: 0.88rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 28px; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; overflow: visible; color: var(--ink); }
figure svg text { font-family: inherit !important; }
figcaption { margin-top: 8px; color: var(--soft); font-size: 0.88rem; max-width: 78ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
article { background: var(--panel); border-radius: 10px; padding: 14px 16px; }
.query { margin: 0 0 10px; font-weight: 600; display: flex; justify-content: space-between; gap: 12px; }
.rank { flex: none; font-weight: normal; font-size: 0.85rem; color: var(--soft); }
.clip img { display: block; width: 100%; border-radius: 6px; }
.clip p { margin: 4px 0 10px; font-size: 0.85rem; color: var(--soft); }
.clip p span { float: right; font-variant-numeric: tabular-nums; }
.clip:last-child p { margin-bottom: 0; }
.absent { padding: 14px; border: 1px dashed var(--line); border-radius: 6px; overflow-wrap: anywhere; }
.settings { columns: 3 300px; column-gap: 36px; }
.settings > div { break-inside: avoid; margin-bottom: 22px; }
.settings h3 { margin: 0 0 6px; border-bottom: 1px solid var(--line); padding-bottom: 4px; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 16px; margin: 0; font-size: 0.85rem; }
dt { color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
@media print { main { max-width: none; padding: 0; } section { break-inside: avoid; } }
"""
