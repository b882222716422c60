"""The page of a sweep: what was searched, what came out, linked charts, and the importance of the keys."""

from collections.abc import Mapping, Sequence

from mgdet.pages.document import bars, command, document, facts, number, section, table, text
from mgdet.provenance import as_facts, made_by
from mgdet.sweep import linked
from mgdet.sweep.config import Sweep
from mgdet.sweep.table import settings_text, sweep_metrics, value_text
from mgdet.sweep.trials import Trial, ranked

NAME = "report.html"
ROWS = 1000
"""Trials in the table."""


def sweep_page(
    sweep: Sweep,
    trials: Sequence[Trial],
    importance: Mapping[str, float] | None,
    winner: str,
) -> str:
    """The page.

    Args:
        sweep: its definition.
        trials: all of them.
        importance: of the searched keys, if it is known.
        winner: the configuration of the best trial as YAML; empty where there is none.
    """
    made, best = made_by(), ranked(sweep, trials)
    states = [trial.state for trial in trials]
    lead, mode = sweep.lead
    rows = [
        ("sweep", sweep.name),
        ("trials", ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none"),
        ("searched", ", ".join(sweep.space)),
        ("best is", f"the {'highest' if mode == 'max' else 'lowest'} {lead}"),
        ("searcher", sweep.searcher.name),
        *as_facts(made),
    ]
    if best:
        found = ", ".join(f"{m} {best[0].metrics[m]:.4f}" for m in sweep_metrics(sweep) if m in best[0].metrics)
        rows.insert(2, ("winner", f"{best[0].name}: {found}; {settings_text(best[0].settings)}"))
    charts = linked.linked_charts(sweep, trials)
    shares = sorted((importance or {}).items(), key=lambda item: -item[1])
    return document(
        sweep.name,
        [
            f"<h1>{text(sweep.name)}</h1>",
            facts((text(name), text(value)) for name, value in rows),
            section("The command", command(made["command"])),
            charts,
            section("Trials", _trials(sweep, trials, best)),
            section(
                "Importance",
                bars("share of each key", [(key, share, number(share, 2)) for key, share in shares]) if shares else "",
                hint="What sets the best trials apart (PED-ANOVA).",
            ),
            section("The winner's configuration", command(winner) if winner else "", hint="Train it with mgdet train."),
        ],
        linked.STYLE.read_text(),
        linked.SCRIPT.read_text() if charts else "",
    )


def _trials(sweep: Sweep, trials: Sequence[Trial], best: Sequence[Trial]) -> str:
    metrics, keys = sweep_metrics(sweep), list(sweep.space)
    shown = [*best, *(trial for trial in trials if trial not in best)][:ROWS]
    rows = [
        [
            text(trial.name),
            text(trial.state),
            f"{trial.epoch}/{trial.epochs}",
            *(number(trial.metrics.get(metric), 4) for metric in metrics),
            *(text(value_text(trial.settings.get(key, ""))) for key in keys),
        ]
        for trial in shown
    ]
    hidden = f", {ROWS} of {len(trials)}" if len(trials) > ROWS else ""
    return table(
        ("trial", "state", "epoch", *metrics, *keys),
        rows,
        f"Trials, the best first{hidden}",
        False,
        [t.name for t in shown],
    )
