//! Draws the screen: header, resources, the chosen resource, events or the steps of closing, and footer.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Table, TableState, Wrap};

use crate::model::{Resource, Step};
use crate::table::{clean, columns, millis, time_of_day};
use crate::watch::app::App;
use crate::watch::chart::chart;
use crate::watch::look::Look;

const KEYS: &str = " q quit  ↑↓ choose  / filter  ? help";
const HELP: [&str; 9] = [
    "q, Ctrl-C    quit",
    "↑ ↓, k j     choose a resource",
    "PgUp PgDn    ten at a time",
    "Home End     the first, the last",
    "/            filter resources and events",
    "Enter        keep the filter",
    "Esc          take the filter away",
    "?            this help",
    "× in a chart is a question without an answer",
];

/// Draws all of it.
pub(crate) fn draw(frame: &mut Frame<'_>, app: &mut App, look: Look) {
    let area = frame.area();
    let rows = u16::try_from(app.resources().len()).unwrap_or(u16::MAX);
    // Resources have up to a third of the screen. The table shows the chosen one, and events need room too.
    let most = (area.height / 3).max(3);
    let [header, resources, detail, below, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(rows.saturating_add(1).min(most)),
        Constraint::Length(if area.height >= 16 { 7 } else { 0 }),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_header(frame, header, app, look);
    draw_resources(frame, resources, app, look);
    draw_detail(frame, detail, app, look);
    match app.page.closing || !app.steps.is_empty() {
        true => draw_closing(frame, below, app, look),
        false => draw_events(frame, below, app, look),
    }
    draw_footer(frame, footer, app, look);
    if app.is_helping {
        draw_help(frame, area, look);
    }
}

fn draw_header(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look) {
    let state = match (&app.lost, &app.report) {
        (_, Some(report)) => format!("closed in {} ({})", millis(report.took_ms), report.reason),
        (Some(why), None) => format!("NO NEWS: {}", clean(why)),
        (None, None) if app.page.closing => "CLOSING".to_owned(),
        (None, None) => match &*app.page.readiness {
            "" => "waiting for the first news".to_owned(),
            "pass" => "ready".to_owned(),
            "fail" => "NOT READY".to_owned(),
            other => format!("ready: {}", clean(other)),
        },
    };
    let text = format!(" resource-pool  {}  {state}", clean(&app.address));
    frame.render_widget(Paragraph::new(text).style(look.bar()), area);
}

fn draw_footer(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look) {
    let text = match (app.is_filtering, app.filter.is_empty()) {
        (true, _) => format!(" /{}▏  Enter keeps, Esc takes it away", clean(&app.filter)),
        (false, false) => format!("{KEYS}  Esc without filter: {}", clean(&app.filter)),
        (false, true) => KEYS.to_owned(),
    };
    frame.render_widget(Paragraph::new(text).style(look.bar()), area);
}

fn draw_resources(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look) {
    let found = app.resources();
    let longest = found.iter().map(|one| columns(&one.name)).max().unwrap_or(0).clamp(8, 24);
    let taken = longest + 10 + 7 + 8 + 9 + 7 + 6 + 7;
    let wide = usize::from(area.width).saturating_sub(taken + 1).max(1);
    let row = |one: &&Resource| {
        let verdict = app.page.verdict(&one.name);
        let health = verdict.map_or("-", |verdict| &verdict.health);
        let latency = verdict.and_then(|verdict| verdict.latency_ms).map_or_else(|| "-".to_owned(), millis);
        let show = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let points = app.latency.get(&one.name).into_iter().flatten().map(|(_, latency)| *latency);
        Row::new([
            Cell::from(clean(&one.name)),
            Cell::from(Span::styled(clean(&one.state), look.state(&one.state))),
            Cell::from(Span::styled(clean(health), look.state(health))),
            Cell::from(Line::from(latency).right_aligned()),
            Cell::from(Line::from(format!("{}/{}", show(one.usage.in_use), show(one.usage.max))).right_aligned()),
            Cell::from(Line::from((one.usage.waiting.unwrap_or(0) + one.connecting).to_string()).right_aligned()),
            Cell::from(Line::from((one.leases + one.checkouts).to_string()).right_aligned()),
            Cell::from(Line::from(chart(points, wide, look))),
        ])
    };
    let head = ["resource", "state", "health", "latency", "in use", "waits", "held", "over time"];
    let head = head.iter().enumerate().map(|(column, head)| match column {
        3..=6 => Cell::from(Line::from(*head).right_aligned()),
        _ => Cell::from(*head),
    });
    let name = u16::try_from(longest).unwrap_or(24);
    let widths = [
        Constraint::Length(name),
        Constraint::Length(10),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Min(1),
    ];
    let table = Table::new(found.iter().map(row), widths)
        .header(Row::new(head).style(look.title()))
        .row_highlight_style(look.chosen())
        .column_spacing(1);
    let mut state = TableState::new().with_selected((!found.is_empty()).then_some(app.chosen));
    frame.render_stateful_widget(table, area, &mut state);
}

/// The chosen resource: where it is, since when it is so, its error, its nodes, and its oldest holders.
fn draw_detail(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look) {
    let Some(one) = app.current() else {
        return frame.render_widget(block("nothing is chosen", look), area);
    };
    let mut lines = Vec::new();
    let since = format!("{} for {}", clean(&one.state), millis(one.since_ms));
    lines.push(Line::from(vec![
        Span::raw(clean(&one.endpoint)),
        Span::raw("  "),
        Span::styled(since, look.state(&one.state)),
        Span::raw(match (one.usage.open, one.usage.idle) {
            (Some(open), Some(idle)) => format!("  {open} open, {idle} idle"),
            _ => String::new(),
        }),
    ]));
    let error = one.error.as_ref().map(|error| error.message.clone());
    let error = error.or_else(|| app.page.verdict(&one.name).and_then(|verdict| verdict.message.clone()));
    if let Some(error) = error {
        lines.push(Line::from(Span::styled(clean(&error), look.state("fail"))));
    }
    if one.nodes.len() > 1 {
        let nodes = one.nodes.iter().flat_map(|node| {
            [
                Span::raw(format!("{} ", clean(&node.endpoint))),
                Span::styled(format!("{}  ", clean(&node.state)), look.state(&node.state)),
            ]
        });
        lines.push(Line::from(nodes.collect::<Vec<_>>()));
    }
    let holders: Vec<_> = app.holders.iter().filter(|held| held.resource == one.name).collect();
    if holders.is_empty() {
        lines.push(Line::from(Span::styled("nobody holds it", look.dim())));
    }
    for held in holders {
        let how = if held.exclusive { "exclusive" } else { "shared" };
        let leak = if held.suspected { ", a leak?" } else { "" };
        let owner = held.owner.as_ref().map(|owner| format!(" by {}", clean(owner))).unwrap_or_default();
        let text = format!("held {} since {} ({how}{leak}){owner}", millis(held.held_ms), clean(&held.site));
        lines.push(Line::from(text));
    }
    // A long error takes several lines, because its remedy is at its end.
    let text = Paragraph::new(lines).wrap(Wrap { trim: true });
    frame.render_widget(text.block(block(&one.name, look)), area);
}

fn draw_events(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look) {
    let height = usize::from(area.height.saturating_sub(1));
    let line = |told: &crate::model::Told| {
        Line::from(vec![
            Span::styled(format!("{}  ", time_of_day(told.at_ms)), look.dim()),
            Span::raw(padded(&told.resource, 12)),
            Span::styled(padded(&told.what, 15), look.state(told.state)),
            Span::raw(clean(&told.text)),
        ])
    };
    let lines: Vec<Line<'_>> = app.shown_events().take(height).map(line).collect();
    frame.render_widget(Paragraph::new(lines).block(block("events, the newest first", look)), area);
}

/// The report of closing, as it grows.
fn draw_closing(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look) {
    let steps: &[Step] = app.report.as_ref().map_or(&app.steps, |report| &report.steps);
    let height = usize::from(area.height.saturating_sub(1));
    let line = |step: &Step| {
        let message = step.message.as_ref().map(|message| format!(": {}", clean(message))).unwrap_or_default();
        Line::from(vec![
            Span::raw(padded(&step.name, 18)),
            Span::styled(padded(&step.phase, 14), look.dim()),
            Span::raw(padded(&millis(step.took_ms), 10)),
            Span::styled(clean(&step.outcome) + &message, look.state(&step.outcome)),
        ])
    };
    let lines: Vec<Line<'_>> = steps.iter().skip(steps.len().saturating_sub(height)).map(line).collect();
    let title = match &app.report {
        Some(report) => format!("closed in {}", millis(report.took_ms)),
        None => "closing".to_owned(),
    };
    frame.render_widget(Paragraph::new(lines).block(block(&title, look)), area);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect, look: Look) {
    let width = 50.min(area.width);
    let height = u16::try_from(HELP.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let lines: Vec<Line<'_>> = HELP.iter().map(|line| Line::from(*line)).collect();
    frame.render_widget(
        Paragraph::new(lines).block(Block::bordered().title(Span::styled(" help ", look.title()))),
        place,
    );
}

/// A panel with a line above it.
fn block(title: &str, look: Look) -> Block<'static> {
    let title = Span::styled(format!(" {} ", clean(title)), look.title());
    Block::new().borders(Borders::TOP).title(title)
}

/// The text, with blanks up to this width and one more.
fn padded(text: &str, width: usize) -> String {
    let text = clean(text);
    let blank = width.saturating_sub(columns(&text));
    format!("{text}{} ", " ".repeat(blank))
}
